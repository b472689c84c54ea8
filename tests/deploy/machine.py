"""Builds an image from its Dockerfile and runs it, without an engine: overlays in a mount namespace of their own.

In place of the base image there is this machine's root, with the interpreter that runs us at /usr/local, where Python's
own images have it. Nothing that is built or mounted here is seen outside, and all of it is gone with the namespace. The
network is this machine's. So it shows that the instructions do what they say, and that the process needs no right and
no folder beyond those it is given; it says nothing of the base image itself.
"""

import asyncio
import fnmatch
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.deploy.dockerfile import Stage, read_dockerfile

_TOOLS = ("unshare", "nsenter", "setpriv", "chroot", "mount", "findmnt", "env")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_LINES = 15


class Unable(Exception):
    """This machine cannot do it; the message says why."""


class BuildFailed(Exception):
    """An instruction failed; the message ends with what it printed last."""


@dataclass(frozen=True, slots=True)
class Image:
    """What was built: the last stage, and where its tree lies within the namespace."""

    stage: Stage
    root: Path


class Machine:
    """A namespace with a folder in memory; entering it makes both. Raises Unable where that is not allowed."""

    def __init__(self, folder: Path, *, context: Path) -> None:
        """folder: where to mount. context: what COPY copies from, less what .dockerignore keeps out."""
        self._folder = folder
        self._context = context
        self._holder: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
        if os.geteuid() != 0 or missing:
            raise Unable(f"mounting takes root and {', '.join(missing or ['nothing else'])}")
        self._holder = await asyncio.create_subprocess_exec(
            "unshare", "--mount", "--propagation", "private", "sleep", "3600", start_new_session=True
        )
        try:
            await self._ready(self._holder)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._end()

    async def _ready(self, holder: asyncio.subprocess.Process) -> None:
        own = Path("/proc/self/ns/mnt").readlink()
        while Path(f"/proc/{holder.pid}/ns/mnt").readlink() == own:
            if holder.returncode is not None:
                raise Unable("a mount namespace of its own is not allowed here")
            await asyncio.sleep(0.01)
        try:
            await self.do("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(self._folder))
        except BuildFailed as failed:
            raise Unable(f"mounting is not allowed here: {failed}") from failed

    async def _end(self) -> None:
        if self._holder is not None and self._holder.returncode is None:
            self._holder.kill()
            await self._holder.wait()

    def entered(self, *command: str) -> list[str]:
        """The command, to be run inside the namespace."""
        assert self._holder is not None, "not entered"
        return ["nsenter", "--target", str(self._holder.pid), "--mount", "--", *command]

    async def do(self, *command: str, shown: str = "") -> str:
        """Run it inside; what it printed. Raises BuildFailed, which shows the command, or something in its place."""
        process = await asyncio.create_subprocess_exec(
            *self.entered(*command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said = (await process.communicate())[0].decode(errors="replace")
        if process.returncode != 0:
            raise BuildFailed("\n".join([shown or shlex.join(command), *said.splitlines()[-_LINES:]]))
        return said

    async def build(self, dockerfile: Path) -> Image:
        """Do what the Dockerfile says, stage by stage."""
        context = await self._sent_context(dockerfile.stem)
        roots: dict[str, Path] = {}
        for stage in read_dockerfile(dockerfile):
            root = roots[stage.name] = await self._based(f"{dockerfile.stem}-{stage.name}")
            folder, environment = "/", {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
            for each in stage.instructions:
                match each.word:
                    case "WORKDIR":
                        folder = each.text
                        await self.do("mkdir", "-p", f"{root}{folder}")
                    case "ENV":
                        environment |= each.pairs
                    case "COPY":
                        source, names, target = each.copied
                        place = root / Path(folder, target).relative_to("/")
                        await self._copy(roots[source] if source else context, names, place, into=target[-1] == "/")
                    case "RUN":
                        await self._run(root, folder, environment, each.text)
        return Image(stage, root)

    async def _sent_context(self, name: str) -> Path:
        """What an engine would be sent: a COPY finds nothing else."""
        sent = self._folder / f"{name}-context"
        await self.do("mkdir", str(sent))
        copy = 'cd "$0" && cp --parents --target-directory "$@"'
        await self.do("sh", "-c", copy, str(self._context), str(sent), *sent_files(self._context))
        return sent

    async def _based(self, name: str) -> Path:
        """A fresh stage: this machine's root and Python, each under a layer that takes what is written."""
        root = self._folder / name
        await self._overlay(Path("/"), root)
        await self._overlay(Path(sys.base_prefix), root / "usr/local")
        await self.do("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", f"{root}/dev")
        for device in _DEVICES:
            await self.do("touch", f"{root}/dev/{device}")
            await self.do("mount", "--bind", f"/dev/{device}", f"{root}/dev/{device}")
        await self.do("mount", "--bind", "/proc", f"{root}/proc")
        await self.do("chroot", str(root), "/sbin/ldconfig")  # as Python's images do, for the library in /usr/local
        return root

    async def _overlay(self, below: Path, at: Path) -> None:
        layers = self._folder / "layers" / at.relative_to(self._folder).as_posix().replace("/", "-")
        upper, work = layers / "upper", layers / "work"
        await self.do("mkdir", "-p", str(upper), str(work), str(at))
        options = f"lowerdir={below},upperdir={upper},workdir={work}"
        await self.do("mount", "-t", "overlay", "-o", options, "overlay", str(at))

    async def _copy(self, source: Path, names: list[str], place: Path, *, into: bool) -> None:
        """As COPY does: what is in a folder, not the folder."""
        await self.do("mkdir", "-p", str(place if into else place.parent))
        for name in names:
            found = source / name.lstrip("/").removeprefix("./")
            is_folder = (await self.do("stat", "--format=%F", str(found))).strip() == "directory"
            await self.do("cp", "--archive", *(["--no-target-directory"] if is_folder else []), str(found), str(place))

    async def _run(self, root: Path, folder: str, environment: Mapping[str, str], text: str) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "PYTHON"))}
        given = [f"{name}={value}" for name, value in (inherited | dict(environment)).items()]
        await self.do(
            "chroot", str(root), "env", "-i", "-C", folder, *given, "/bin/sh", "-c", text, shown=f"RUN {text}"
        )

    async def close(self, image: Image) -> None:
        """From here on nobody writes to the image's tree: every mount in it is read-only."""
        mounts = (await self.do("findmnt", "--list", "--noheadings", "--output", "TARGET")).splitlines()
        for place in [each for each in mounts if each == str(image.root) or each.startswith(f"{image.root}/")]:
            await self.do("mount", "-o", "remount,bind,ro", place)

    async def mount(self, image: Image, place: str, *, bound: Path | None = None) -> None:
        """Let the image's user write to one folder: a bound one of this machine, or one in memory."""
        owner = image_user(image)
        at = f"{image.root}{place}"
        if bound is None:
            await self.do("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", at)
        else:
            await self.do("chown", f"{owner}:{owner}", str(bound))
            await self.do("mount", "--bind", str(bound), at)

    def command(self, image: Image, environment: Mapping[str, str], *command: str) -> list[str]:
        """The arguments that run a command as the image's user, with no capability and no way to get one."""
        user = image_user(image)
        workdir = image.stage.last("WORKDIR")
        given = [f"{name}={value}" for name, value in (image.stage.environment | dict(environment)).items()]
        dropped = ["--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
        return self.entered(
            *("chroot", str(image.root), "env", "-i", "-C", workdir.text if workdir else "/", *given),
            *("/usr/bin/setpriv", f"--reuid={user}", f"--regid={user}", *dropped, "--", *command),
        )


def image_user(image: Image) -> int:
    """The number of the user that the image runs as."""
    said = image.stage.last("USER")
    return int(said.text.partition(":")[0]) if said else 0


def sent_files(context: Path) -> list[str]:
    """The files of the context that .dockerignore lets through; it must begin with `*`, so that others are named."""
    lines = [line for line in (context / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*", "what is not named is not sent"
    named = [context / line[1:] for line in lines if line.startswith("!")]
    kept_out = [line for line in lines[1:] if not line.startswith("!")]
    found = [path for each in named for path in ([each] if each.is_file() else sorted(each.rglob("*")))]
    names = [path.relative_to(context).as_posix() for path in found if path.is_file()]
    return [name for name in names if not any(_fits(name, pattern) for pattern in kept_out)]


def _fits(name: str, pattern: str) -> bool:
    """Whether a line such as `**/__pycache__` or `**/*.pyc` is about this file or a folder it is in."""
    loose = pattern.removeprefix("**/")
    return any(fnmatch.fnmatchcase(part, loose) for part in Path(name).parts) if loose != pattern else name == pattern
