r"""An OpenAI-compatible server in a process of its own, whose answers the questions decide.

``python fake_backend.py PORT MODEL [--without-logprobs] [--refuse=401]``. A question such as
``q17 c=0.9 wait=0.05,0.2`` is answered ``\boxed{17}`` with that confidence (none, if it has no
``c=``) after the first wait by a model named ``small``, after the second by another. ``break=1``
breaks a streamed answer off, ``odd=small`` lets that model answer 18. What it was asked is counted at ``/count``.
"""

import asyncio
import json
import re
import sys

model, flags, asked = "", [], 0


def said(question):
    number = int(re.search(r"q(\d+)", question)[1]) + (f"odd={model}" in question)
    stated = re.search(r"c=(\S+)", question)
    if model != "small" or not stated:
        return rf"By {model}: \boxed{{{number}}}"
    return rf"By {model}: \boxed{{{number}}} \confidence{{{stated[1]}}}"


def answer(text):
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
    }
    if "--without-logprobs" not in flags:
        choice["logprobs"] = {"content": [{"token": "a", "logprob": -0.25}] * 4}
    return {"id": "x", "choices": [choice], "usage": {"prompt_tokens": 30, "completion_tokens": 10}}


def packed(body, status="200 OK"):
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


async def stream(question, text, writer):
    def event(told):
        data = f"data: {told if isinstance(told, str) else json.dumps(told)}\n\n".encode()
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
    writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
    for word in re.findall(r"\S+\s*", text):
        event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
        await writer.drain()
        await asyncio.sleep(0.01)
        if "break=1" in question:
            writer.close()
            return
    event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    event({"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 10}})
    event("[DONE]")
    writer.write(b"0\r\n\r\n")


async def serve(reader, writer):
    global asked
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = re.search(rb"(?i)content-length: (\d+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            if head.startswith(b"GET"):
                counted = {"data": [{"id": model}], "asked": asked}
                writer.write(packed(json.dumps(counted).encode()))
                continue
            if refused := [flag[9:] for flag in flags if flag.startswith("--refuse=")]:
                writer.write(packed(b"no", f"{refused[0]} No"))
                continue
            question = json.loads(body)
            asked += 1
            text = question["messages"][-1]["content"]
            waits = re.search(r"wait=([\d.]+),([\d.]+)", text)
            await asyncio.sleep(float(waits[1 if model == "small" else 2]) if waits else 0)
            if not re.search(r"q\d", text):
                text = "q0"
            if question.get("stream"):
                await stream(text, said(text), writer)
            else:
                writer.write(packed(json.dumps(answer(said(text))).encode()))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main(port):
    server = await asyncio.start_server(serve, "127.0.0.1", int(port), backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    port, model, *flags = sys.argv[1:]
    asyncio.run(main(port))
