/* What the pages of the book do: interactive figures, tab stops, paper. */
(() => {
  "use strict";
  const root = document.documentElement;
  const here = document.currentScript.src;
  const all = (selector) => [...document.querySelectorAll(selector)];

  /* --- interactive figures (corea/book/display.py, Interactive) ------------------------------ */

  const figures = () =>
    all(".corea-interactive").map((plot) => {
      const figure = plot.closest("figure");
      const text = figure.querySelector('script[type="application/json"]').textContent;
      const slider = figure.querySelector('input[type="range"]');
      return { plot, text, slider, readout: figure.querySelector("output"), ...JSON.parse(text) };
    });

  function draw(figure) {
    const colour = (name) => getComputedStyle(root).getPropertyValue(`--pst-color-${name}`).trim();
    let { data, layout } = figure;
    if (root.dataset.theme === "dark") {
      const light = new RegExp(Object.keys(figure.dark).join("|"), "g");
      ({ data, layout } = JSON.parse(figure.text.replace(light, (found) => figure.dark[found])));
    }
    const axis = { gridcolor: colour("border"), zerolinecolor: colour("border"), automargin: true };
    layout = {
      height: 430,
      margin: { t: 10, r: 10, l: 55, b: 50 },
      legend: { orientation: "h", y: -0.25, yanchor: "top" },
      ...layout,
      paper_bgcolor: "rgba(0, 0, 0, 0)",
      plot_bgcolor: "rgba(0, 0, 0, 0)",
      font: { color: colour("text-base"), family: getComputedStyle(document.body).fontFamily },
      xaxis: { ...axis, ...layout.xaxis },
      yaxis: { ...axis, ...layout.yaxis },
      hoverlabel: { bgcolor: colour("surface"), font: { color: colour("text-base") } },
    };
    if (figure.slider) {
      const { x, y } = figure.stops[figure.slider.value];
      data = [...data.slice(0, -1), { ...data[data.length - 1], x, y }];
    }
    Plotly.react(figure.plot, data, layout, { responsive: true, displayModeBar: false });
  }

  function move(figure) {
    const { x, y, text } = figure.stops[figure.slider.value];
    figure.readout.textContent = text;
    figure.slider.setAttribute("aria-valuetext", text);
    if (figure.plot.data) {
      Plotly.restyle(figure.plot, { x: [x], y: [y] }, [figure.data.length - 1]);
    }
  }

  function start() {
    const found = figures();
    for (const figure of found) {
      figure.slider?.addEventListener("input", () => move(figure));
    }
    if (found.length) {
      const script = document.createElement("script");
      script.src = new URL("plotly.min.js", here);
      script.onload = () => {
        found.forEach(draw);
        new MutationObserver(() => found.forEach(draw)).observe(root, {
          attributeFilter: ["data-theme"],
        });
      };
      document.body.append(script);
    }
  }

  /* --- what scrolls sideways can be reached by keyboard --------------------------------------- */

  const WIDE = [".corea-scroll", ".corea-figure", ".pst-scrollable-table-container", ".bd-content pre"]
    .concat([".bd-content div.math", "mjx-container[display]"])
    .join(", ");

  function tabStops() {
    for (const box of all(WIDE)) {
      if (box.scrollWidth > box.clientWidth) {
        box.tabIndex = 0;
      }
    }
  }

  /* --- what the theme leaves out for who hears the page ---------------------------------------- */

  function names() {
    for (const summary of all("nav li > details > summary")) {
      const above = summary.closest("li").querySelector("a").textContent.trim();
      summary.setAttribute("aria-label", `Pages below ${above}`);
    }
    for (const entry of all(".citation-list > .citation")) {
      entry.setAttribute("role", "listitem");
    }
  }

  /* --- paper is light, and nothing on it is folded -------------------------------------------- */

  let before = null;
  function paper(printing) {
    if (printing && !before) {
      before = { theme: root.dataset.theme, opened: all("details:not([open])") };
      root.dataset.theme = "light";
      before.opened.forEach((details) => (details.open = true));
    } else if (!printing && before) {
      root.dataset.theme = before.theme;
      before.opened.forEach((details) => (details.open = false));
      before = null;
    }
  }
  matchMedia("print").addEventListener("change", (event) => paper(event.matches));
  addEventListener("beforeprint", () => paper(true));
  addEventListener("afterprint", () => paper(false));

  addEventListener("load", () => {
    start();
    names();
    tabStops();
    addEventListener("resize", tabStops);
    document.addEventListener("toggle", tabStops, true);
    window.MathJax?.startup?.promise.then(tabStops); // formulas are there
  });
})();
