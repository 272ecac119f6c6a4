"""What a confined child does, inside the sandbox: wait for a request, run the code, answer, end. Standard library only.

The server's side of it is `child_process.py`.

One module: it is one namespace. The zygote executes the file with a copy of the builtins, so that code
which patches `builtins` breaks itself and not what reports its end; what the child imported from a second module would
have the builtins that the code patched. And a plain call must touch few pages, so its path is one short function here.
Whatever else the code breaks: then the server gets no answer, and says so.

A child serves one request unless the request says otherwise (`wire.Mode`): a session keeps its namespace.
"""

import ast
import errno
import gc
import io
import linecache
import os
import random
import signal
import sys
import traceback
from os import listdir
from resource import RLIMIT_CPU, setrlimit
from signal import ITIMER_REAL, setitimer
from sys import modules
from types import ModuleType
from typing import Any

from mcp_servers.python_executor.sandbox import channel as channels
from mcp_servers.python_executor.sandbox import tools as calling
from mcp_servers.python_executor.sandbox.wire import (
    CHANNEL,
    CPU_GRACE_SECONDS,
    MAX_ANSWER_BYTES,
    MAX_FILES,
    MAX_FILES_BYTES,
    MAX_IMAGES,
    MAX_IMAGES_BYTES,
    MAX_INODES,
    MAX_MESSAGE_CHARS,
    MAX_PATH_CHARS,
    MAX_RESULT_CHARS,
    MAX_TRACEBACK_CHARS,
    MAX_TYPE_CHARS,
    REPLY,
    REQUEST,
    WITH_TOOLS,
    Answer,
    Mode,
    Request,
    decode_request,
    encode_answer,
    encode_request,
    encode_result,
    request_length,
)

__all__ = [
    "SAMPLES",
    "LazySeed",
    "Prepared",
    "Reset",
    "TimeLimit",
    "answer_request",
    "arm_random",
    "install_alarm",
    "prepare",
    "serve",
]

FIRST_READ_BYTES = 4096
READ_BYTES = 1 << 18
COLLECT_EVERY = 100
ONCE, RESTRICTED = Mode.ONCE, Mode.RESTRICTED
MODE_AT = 4
REPLY_KIND = bytes([REPLY])
"""Where a request's mode stands."""
CO_COROUTINE = 0x80
PYPLOT = "matplotlib.pyplot"
WARM_ROUNDS = 40

SAMPLES = (
    b"1 + 1",
    b"print('a', 1.5)\nx = {str(i): i for i in range(30)}\nx",
    b"import json\ndef f(a, *b, **c):\n    return a + 1\nresult = json.loads(json.dumps([f(1), 'a', 2.5]))",
    b"total = 0\nfor i in range(500):\n    total += i\ntry:\n    1 / 0\nexcept ZeroDivisionError as e:\n    repr(e)",
    b"import math\n[math.sqrt(i) for i in range(100) if i % 2], f'{2.5:.2f}', ','.join(sorted('a,b'.split(',')))",
)
"""Code as people send it: run before the fork to warm up, and to learn which memory every call writes to."""

BLOCKS = frozenset((
    "for", "while", "if", "elif", "else", "try", "except", "finally", "with", "def", "class", "async",
))  # fmt: skip
STATEMENTS = BLOCKS | frozenset((
    "import", "from", "return", "del", "pass", "break", "continue", "raise", "global", "nonlocal", "assert",
))  # fmt: skip
ASSIGNMENTS = frozenset(("=", "+=", "-=", "*=", "/=", "//=", "%=", "**=", ">>=", "<<=", "&=", "^=", "|=", "@="))


class TimeLimit(BaseException):
    """Raised in the code when its time is over, so that the traceback shows where it stood."""


class LazySeed(ModuleType):
    """A module with a random generator that was seeded before the fork: its first use in a child seeds it anew."""

    def __getattribute__(self, name: str) -> Any:
        if name[:2] != "__":
            object.__setattr__(self, "__class__", ModuleType)
            ModuleType.__getattribute__(self, "seed")()
        return ModuleType.__getattribute__(self, name)


def arm_random() -> None:
    """Called in the zygote last: children shall not repeat one another's random numbers."""
    random.__class__ = LazySeed
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.__class__ = LazySeed


linecache_cache = linecache.cache
_running = False
channel = channels.Channel()
OURS = (calling.__file__, channels.__file__, __file__)
LATER_SECONDS = 0.1


def _on_alarm(_number: int, _frame: object) -> None:
    if _running:
        if channel.waiting:  # whoever answers knows how much time is left: a person may be asked
            setitimer(ITIMER_REAL, LATER_SECONDS)
            return
        raise TimeLimit


def install_alarm() -> None:
    """Called once, before children are forked."""
    signal.signal(signal.SIGALRM, _on_alarm)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started us in the background had it ignored


# ----------------------------------------------------------------------------------------------------------- the code


def split_last(code: str) -> tuple[str, str | None] | None:
    """Split code into what stands before its last line, and that line if it may be an expression.

    Returns `None` where only the parser can tell.

    A syntax tree touches some eighty pages, which a fresh process pays for. Most code does not need one.
    """
    stripped = code.rstrip()
    start = stripped.rfind("\n") + 1
    line = stripped[start:]
    if not line:
        return code, None
    if line[0] in " \t":
        return (code, None) if _ends_in_block(stripped) else None
    if not (line[0].isalnum() or line[0] in "_([{-~+") or ";" in line:
        return None
    words = line.split(None, 2)
    if words[0].rstrip(":") in STATEMENTS:
        return code, None
    if len(words) > 1 and words[1] in ASSIGNMENTS:
        return code, None
    if len(words) > 1 and words[1][-1] == "=" and words[1] not in ("==", "!=", "<=", ">="):
        return None
    return stripped[:start], line


def _ends_in_block(code: str) -> bool:
    """Whether the last line, which is indented, stands in a block: then there is no value. A guess is only ever no."""
    if '"""' in code or "'''" in code:
        return False
    opening = next((line for line in reversed(code.split("\n")) if line and line[0] not in " \t#"), "")
    return opening.rstrip().endswith(":") and opening.split(None, 1)[0].rstrip(":") in BLOCKS


def compile_code(code: str, filename: str, with_tools: int = 0) -> "tuple[Any, Any]":
    """(statements, last expression), either of which may be `None`."""
    awaits = with_tools and "await" in code
    parts = split_last(code) if not awaits else None
    if parts is not None:
        body, last = parts
        try:
            if last is None:
                return compile(body, filename, "exec", 0, True), None
            expression: Any = compile("\n" * body.count("\n") + last, filename, "eval", 0, True)
            return (compile(body, filename, "exec", 0, True) if body else None), expression
        except SyntaxError:
            pass
    flags = 0
    try:
        tree: Any = compile(code, filename, "exec", ast.PyCF_ONLY_AST, True)
        compile(tree, filename, "exec", 0, True)
    except SyntaxError as exc:
        if "await" not in str(exc) and "async" not in str(exc):
            raise
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT  # as in a notebook
        tree = compile(code, filename, "exec", ast.PyCF_ONLY_AST | flags, True)
    if awaits:
        calling.let_await(tree)
    expression = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        expression = compile(ast.Expression(tree.body.pop().value), filename, "eval", flags, True)
    return (compile(tree, filename, "exec", flags, True) if tree.body else None), expression


def compile_restricted_code(code: str, filename: str) -> "tuple[Any, Any]":
    import warnings

    from RestrictedPython import compile_restricted  # type: ignore[attr-defined]

    warnings.simplefilter("ignore", SyntaxWarning)  # of its own about print
    tree = ast.parse(code, filename)
    expression = None
    if tree.body and isinstance(last := tree.body[-1], ast.Expr):
        tree.body.pop()
        text = "\n" * (last.lineno - 1) + ast.unparse(last.value)
        expression = compile_restricted(text, filename, "eval")
    return (compile_restricted(tree, filename, "exec") if tree.body else None), expression


def restricted_namespace() -> dict[str, Any]:
    from RestrictedPython import (  # type: ignore[attr-defined]
        safe_builtins,
        utility_builtins,
    )
    from RestrictedPython.Eval import default_guarded_getitem, default_guarded_getiter
    from RestrictedPython.Guards import full_write_guard, guarded_iter_unpack_sequence, safer_getattr

    class Printer:
        def __init__(self, _getattr: Any = None) -> None:
            pass

        def _call_print(self, *objects: Any, **options: Any) -> None:
            print(*objects, **{key: value for key, value in options.items() if key in ("sep", "end")})

    more = (all, any, dict, enumerate, filter, list, map, max, min, range, reversed, set, frozenset, sorted, sum)
    names = {**safe_builtins, **utility_builtins, **{one.__name__: one for one in more}}
    return {
        "__builtins__": names,
        "__name__": "__main__",
        "__metaclass__": type,
        "_getattr_": safer_getattr,
        "_getitem_": default_guarded_getitem,
        "_getiter_": default_guarded_getiter,
        "_iter_unpack_sequence_": guarded_iter_unpack_sequence,
        "_unpack_sequence_": guarded_iter_unpack_sequence,
        "_write_": full_write_guard,
        "_inplacevar_": inplace,
        "_print_": Printer,
    }


def inplace(operation: str, left: Any, right: Any) -> Any:
    """`x += y` for names: RestrictedPython asks us to do it."""
    import operator

    names = {
        "+=": "iadd", "-=": "isub", "*=": "imul", "/=": "itruediv", "//=": "ifloordiv", "%=": "imod", "**=": "ipow",
        "<<=": "ilshift", ">>=": "irshift", "&=": "iand", "|=": "ior", "^=": "ixor", "@=": "imatmul",
    }  # fmt: skip
    return getattr(operator, names[operation])(left, right)


# --------------------------------------------------------------------------------------------------------- its answer


def shown(value: object) -> str | None:
    """The value as a notebook shows it."""
    if value is None:
        return None
    try:
        text = repr(value)
    except (MemoryError, TimeLimit):
        raise
    except BaseException as exc:  # a repr of the code's own
        text = f"<{type(value).__name__} whose repr failed: {type(exc).__name__}>"
    return text


def cut(text: str, most: int) -> str:
    """The text, up to so many characters; a last one says that there was more."""
    return text if len(text) <= most else text[: most - 1] + "…"


def failed(exc: BaseException, filename: str, answer: Answer) -> None:
    """Put an error into the answer, with the code's own lines and without ours."""
    answer.exit = "error"
    answer.error_type = cut(type(exc).__name__, MAX_TYPE_CHARS)
    try:
        answer.error_message = cut(str(exc), MAX_MESSAGE_CHARS)
    except BaseException as odd:
        answer.error_message = f"<its message could not be made: {type(odd).__name__}>"
    if isinstance(exc, SystemExit):
        if exc.code in (None, 0):
            answer.exit = "ok"
            return
        answer.error_message = f"the code called sys.exit({exc.code!r})"[:MAX_MESSAGE_CHARS]
    elif isinstance(exc, MemoryError):
        answer.exit, answer.limits = "memory", "memory"
        answer.error_message = answer.error_message or "out of memory"
    elif isinstance(exc, TimeLimit):
        answer.exit, answer.limits, answer.error_type = "timeout", "time", "TimeoutError"
    elif isinstance(exc, OSError):
        answer.limits = {
            errno.ENOSPC: "disk", errno.EDQUOT: "disk", errno.EFBIG: "file_size", errno.EMFILE: "open_files",
            errno.EAGAIN: "processes",
        }.get(exc.errno or 0, "")  # fmt: skip
    elif isinstance(exc, RuntimeError) and "start new thread" in answer.error_message:
        answer.limits = "processes"
    stack = exc.__traceback__
    while stack is not None and stack.tb_frame.f_code.co_filename != filename:
        stack = stack.tb_next
    if isinstance(exc, TimeLimit):
        lines = ["Traceback (most recent call last):\n", *traceback.format_list(own_frames(stack))]
    else:
        lines = format_error(exc, stack)
        answer.error_message += hint(exc) or hint(exc.__context__)
    text = "".join(lines)
    answer.traceback = text if len(text) <= MAX_TRACEBACK_CHARS else "…" + text[1 - MAX_TRACEBACK_CHARS :]


def own_frames(stack: Any) -> "traceback.StackSummary":
    """The frames of the code, without those of ours that it called."""
    frames = traceback.extract_tb(stack)
    return traceback.StackSummary.from_list([one for one in frames if one.filename not in OURS])


def format_error(exc: BaseException, stack: Any) -> list[str]:
    if not isinstance(exc, channels.ToolError):
        return traceback.format_exception(type(exc), exc, stack)
    told = traceback.TracebackException(type(exc), exc, stack)
    told.stack = own_frames(stack)
    return list(told.format())


def hint(exc: BaseException | None) -> str:
    """Say what a refusal by the sandbox means, where the standard library hides it."""
    if isinstance(exc, PermissionError) or type(exc).__name__ == "gaierror":
        assert exc is not None
        for frame in traceback.extract_tb(exc.__traceback__):
            if os.path.basename(frame.filename) in HINTS:
                return HINTS[os.path.basename(frame.filename)]
    return ""


HINTS = {
    "socket.py": ": the sandbox has no network",
    "subprocess.py": ": code may not start programs here",
}


def look(folder: str, answer: Answer | None = None) -> dict[str, tuple[int, int, int]]:
    """The regular files below the working folder: path → (size, change time in ns, inode).

    Args:
        answer: is told where there are too many to look at all.
    """
    found: dict[str, tuple[int, int, int]] = {}
    pending = [""]
    seen = 0
    while pending:
        inside = pending.pop()
        try:
            entries = list(os.scandir(os.path.join(folder, inside)))
        except OSError:
            continue
        for entry in entries:
            seen += 1
            if seen > MAX_INODES:
                if answer is not None:
                    answer.limits = answer.limits or "files"
                return found
            path = os.path.join(inside, entry.name)
            if entry.is_dir(follow_symlinks=False):
                if entry.name != "__pycache__":
                    pending.append(path)
            elif entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                found[path] = (status.st_size, status.st_ctime_ns, status.st_ino)
    return found


def collect_files(folder: str, before: dict[str, tuple[int, int, int]], answer: Answer) -> None:
    """Put the files that the code wrote into the answer, up to a bound; of the others, their names and sizes."""
    room = MAX_FILES_BYTES
    for path, status in sorted(look(folder, answer).items()):
        if before.get(path) == status or len(path) > MAX_PATH_CHARS:
            continue
        if len(answer.files) >= MAX_FILES:
            answer.limits = answer.limits or "files"
            return
        size = status[0]
        if size > room:
            answer.files.append((path, size))
            answer.limits = answer.limits or "files"
            continue
        try:
            with open(os.open(os.path.join(folder, path), os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                content = file.read(room)
        except OSError:
            continue
        room -= len(content)
        answer.files.append((path, content))


def collect_images(value: object, answer: Answer) -> None:
    """Put open matplotlib figures into the answer, and a value that can show itself as PNG, as a notebook does."""
    pyplot = sys.modules.get(PYPLOT)
    images = []
    if pyplot is not None:
        numbers = pyplot.get_fignums()
        if len(numbers) > MAX_IMAGES:
            answer.limits = answer.limits or "images"
        for number in numbers[:MAX_IMAGES]:
            buffer = io.BytesIO()
            try:
                pyplot.figure(number).savefig(buffer, format="png", bbox_inches="tight")
                images.append(buffer.getvalue())
            except (MemoryError, TimeLimit):
                raise
            except Exception as exc:  # the code's own artists
                print(f"figure {number} could not be drawn: {type(exc).__name__}: {exc}", file=sys.stderr)
        pyplot.close("all")
    show = getattr(type(value), "_repr_png_", None)
    if show is not None:
        try:
            png = show(value)
        except Exception:  # the code's own
            png = None
        if isinstance(png, bytes):
            images.append(png)
    room = MAX_IMAGES_BYTES
    for image in images:
        room -= len(image)
        if room < 0:
            answer.limits = answer.limits or "images"
            break
        answer.images.append(image)


# ------------------------------------------------------------------------------------------------------------ running


def new_namespace() -> dict[str, Any]:
    """An empty `__main__`."""
    import builtins

    module = ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    return module.__dict__


def answer_request(data: bytes, namespace: dict[str, Any], filename: str, folder: str) -> bytes:
    """Run a request with everything around it: the clock, the streams, the files. Never raises what the code raises.

    It is one function, and skips what a plain call does not need, because each function called and each object touched
    costs a fresh process a page of memory, which is more than its own work.
    """
    global _running  # noqa: PLW0603 - a page less than an object
    _, mode, seconds, length, given, count = REQUEST.unpack_from(data)
    with_tools = mode & WITH_TOOLS
    mode ^= with_tools
    code = data[REQUEST.size : REQUEST.size + length]
    before = None
    if given or count or mode != ONCE:
        request = decode_request(data)
        sys.stdin = io.TextIOWrapper(io.BytesIO(request.input), "utf-8", "replace")
        write_files(request.files, folder)
        before = look(folder)
    if with_tools:
        give_tools(namespace, decode_request(data).tools_at_once, code)
    value = None
    try:
        if mode == ONCE or mode == RESTRICTED:  # noqa: PLR1714, SIM109 - no tuple to touch
            bound = int(seconds) + CPU_GRACE_SECONDS
            setrlimit(RLIMIT_CPU, (bound, bound))
        setitimer(ITIMER_REAL, seconds)
        text = code.decode("utf-8", "surrogatepass")
        # As a traceback's marks expect them: lines end where they do for Python, which is not where they do for a text.
        lines = io.StringIO(text if text[-1:] == "\n" else text + "\n", None).readlines()
        linecache_cache[filename] = (length, None, lines, filename)
        _running = True
        if mode == RESTRICTED:
            body, last = compile_restricted_code(text, filename)
        else:
            body, last = compile_code(text, filename, with_tools)
        if body is not None:
            value = eval(body, namespace)  # noqa: S307
            if value is not None:  # a coroutine: the code awaits at its top level
                finish_coroutine(value)
        if last is not None:
            value = eval(last, namespace)  # noqa: S307
            if last.co_flags & CO_COROUTINE:
                value = finish_coroutine(value)
        else:
            value = None
        result = None if value is None else shown(value)
        _running = False
        if with_tools:
            channel.close()
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (ValueError, AttributeError):  # the code closed or deleted them, which Python allows
            pass
        fits = result is None or len(result) <= MAX_RESULT_CHARS
        if fits and not listdir(folder) and PYPLOT not in modules and not hasattr(type(value), "_repr_png_"):
            setitimer(ITIMER_REAL, 0)
            return encode_result(result)
        answer = Answer("ok", result)
        if result is not None and not fits:
            answer.result, answer.limits = cut(result, MAX_RESULT_CHARS), "result"
    except BaseException as exc:  # whatever the code raises is its result
        _running = False
        if with_tools:
            channel.close()
        answer = Answer()
        failed(exc, filename, answer)
    collect_images(value, answer)
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError, AttributeError):  # full, closed or deleted by the code
            pass
    collect_files(folder, before or {}, answer)
    setitimer(ITIMER_REAL, 0)
    return encode_answer(answer)


def give_tools(namespace: dict[str, Any], at_once: int, code: bytes) -> None:
    """Let the code call tools, until the channel is closed."""
    channel.open(at_once)
    if not isinstance(namespace.get("tools"), calling.Tools):
        tools = namespace["tools"] = calling.Tools(channel)
        namespace["ToolError"] = channels.ToolError
        namespace["help"] = calling.Help(tools, getattr(namespace["__builtins__"], "help", print))
        namespace[calling.AWAITED] = calling.awaited
        if not os.path.exists("tools.py"):
            modules["tools"] = tools  # type: ignore[assignment] # for code that imports it
    if b"asyncio" in code:
        import asyncio

        calling.lift_asyncio(asyncio)


def finish_coroutine(value: Any) -> Any:
    import asyncio

    return asyncio.run(value)


def write_files(files: list[tuple[str, bytes]], folder: str) -> None:
    for path, content in files:
        target = os.path.join(folder, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            file.write(content)


def read_more() -> bytes:
    data = os.read(CHANNEL, READ_BYTES)
    if not data:
        os._exit(0)  # nobody is there any more
    return data


def read_request() -> bytes:
    data = channel.rest or os.read(CHANNEL, FIRST_READ_BYTES)
    if channel.rest or data[MODE_AT : MODE_AT + 1] == REPLY_KIND:  # of calls that the code did not wait for
        channel.rest = data
        data = channel.after_replies(read_more)
        channel.rest = b""
    if len(data) >= REQUEST.size and request_length(data) == len(data):
        return data
    parts, got, length = [data], len(data), None
    while length is None or got < length:
        if length is None and got >= REQUEST.size:
            length = request_length(b"".join(parts))
            continue
        if not data:
            os._exit(0)  # the spare is not needed
        data = os.read(CHANNEL, READ_BYTES)
        parts.append(data)
        got += len(data)
    return b"".join(parts)


def write_answer(data: bytes) -> None:
    if len(data) > MAX_ANSWER_BYTES:
        data = encode_answer(Answer("error", None, "ValueError", "the answer is too large", "", "answer"))
    written = os.write(CHANNEL, data)
    while written < len(data):
        written += os.write(CHANNEL, data[written : written + READ_BYTES])


class Prepared:
    """What every child needs, made once before the fork: making it costs a child some eighty pages.

    The streams are on descriptors 1 and 2, which are another file in each child: one that the server reads, also after
    the child was killed.
    """

    def __init__(self) -> None:
        self.streams = [
            open(fd, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
            for fd in (1, 2)
        ]
        self.no_input = io.TextIOWrapper(io.BytesIO(), "utf-8", "replace")
        self.namespace = new_namespace()

    def install(self) -> None:
        """Put the streams in place. Done before the fork, so that the old ones are not freed in every child."""
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = self.streams  # type: ignore[misc]
        sys.stdin = self.no_input


class Reset:
    """The state that the engine `reset` restores between callers. Everything else stays as a caller left it."""

    def __init__(self) -> None:
        import builtins

        self._builtins = dict(vars(builtins))
        self._path = list(sys.path)
        self._modules = dict(sys.modules)
        self._environ = dict(os.environ)
        self._folder = os.getcwd()
        self._calls = 0

    def restore(self) -> None:
        import builtins

        vars(builtins).clear()
        vars(builtins).update(self._builtins)
        sys.path[:] = self._path
        sys.modules.clear()
        sys.modules.update(self._modules)
        os.environ.clear()
        os.environ.update(self._environ)
        os.chdir(self._folder)
        self._calls += 1
        if self._calls % COLLECT_EVERY == 0:
            gc.collect()


def prepare(empty_folder: str) -> Prepared:
    """Make what children need, and run the path of a call many times. The zygote runs nothing in Python after this.

    A child then finds the functions of that path specialised, their methods in the type cache, and free memory where
    it asks for some.
    """
    _kept.extend((sys.stdin, sys.stdout, sys.stderr))
    prepared = Prepared()
    prepared.install()
    global setrlimit  # noqa: PLW0603
    real, setrlimit = setrlimit, lambda kind, bounds: None  # the zygote's own time has no end
    for _ in range(WARM_ROUNDS):
        for code in SAMPLES:
            answer_request(encode_request(Request(code, ONCE, 3600.0)), new_namespace(), "<code>", empty_folder)
    for _ in range(WARM_ROUNDS):
        request = Request(SAMPLES[0], ONCE, 3600.0, tools_at_once=1)
        answer_request(encode_request(request), new_namespace(), "<code>", empty_folder)
    setrlimit = real
    linecache.cache.clear()
    prepared.namespace = new_namespace()
    return prepared


_kept: list[object] = []


def serve(folder: str, prepared: Prepared) -> None:
    """Wait for a request at the channel, answer it, and end; or go on, if the request says so. Never returns."""
    gc.enable()
    data = read_request()
    if data[MODE_AT] == ONCE:
        try:
            answer = answer_request(data, prepared.namespace, "<code>", folder)
        except BaseException as exc:
            answer = broken(exc)
        write_answer(answer)
        os._exit(0)  # no finalisers: nothing of the code runs any more
    serve_again(data, folder, prepared)


def serve_again(data: bytes, folder: str, prepared: Prepared) -> None:
    """Answer one request after the other: sessions, and engines that share a process."""
    reset = None
    namespace = prepared.namespace
    count = 0
    while True:
        mode = data[MODE_AT] & ~WITH_TOOLS
        count += 1
        if mode == Mode.RESET:
            if reset is None:
                reset = Reset()
            else:
                reset.restore()
            prepared.install()
            namespace = new_namespace()
        elif mode == RESTRICTED:
            namespace = restricted_namespace()
        try:
            answer = answer_request(data, namespace, "<code>" if mode == ONCE else f"<code {count}>", folder)
        except BaseException as exc:
            answer = broken(exc)
        write_answer(answer)
        if mode in (RESTRICTED, ONCE):
            os._exit(0)
        data = read_request()


def broken(exc: BaseException) -> bytes:
    """Answer for code that broke what we need to finish, or whose time ended while we finished."""
    if isinstance(exc, TimeLimit):
        return encode_answer(Answer("timeout", None, "TimeoutError", "", "", "time"))
    said = f"the sandbox could not finish: {exc}"[:MAX_MESSAGE_CHARS]
    return encode_answer(Answer("error", None, type(exc).__name__[:MAX_TYPE_CHARS], said))
