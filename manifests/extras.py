"""What is not installed with javisc alone: packages by the extra that brings them, and the line that says so."""

from __future__ import annotations

from importlib.util import find_spec

from javisc.manifests.errors import UserError

#: extra → the packages that it brings, as they are imported
EXTRAS = {
    "train": (
        "torch", "torchaudio", "torchvision", "triton", "xformers", "nvidia", "transformers", "diffusers", "safetensors",
        "omegaconf", "tensorboard", "ftfy",
    ),
    "prior": ("scipy",),
    "ray": ("ray",),
    "s3": ("s3fs",),
    "wandb": ("wandb",),
}  # fmt: skip
#: scheme of a URL → the package that opens it
DRIVERS = {"s3": "s3fs", "s3a": "s3fs"}


def extra_of(module: str | None) -> str | None:
    """The extra that brings a module (`torch.nn` as well as `torch`), or None."""
    package = (module or "").partition(".")[0]
    return next((extra for extra, packages in EXTRAS.items() if package in packages), None)


def missing(what: str, package: str) -> UserError:
    """The line for what needs a package that is not installed. what: the command, option or URL."""
    return UserError(f"{what} needs {package}, which is not installed: pip install 'javisc[{extra_of(package)}]'")


def need(what: str, package: str) -> None:
    """Raise UserError if a package of an extra is not installed."""
    if find_spec(package) is None:
        raise missing(what, package)


def need_driver(url: str) -> None:
    """Raise UserError if the package that opens a URL is not installed. Other schemes are left to fsspec."""
    package = DRIVERS.get(url.partition("://")[0])
    if package is not None:
        need(url, package)
