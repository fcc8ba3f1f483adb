"""What a site's operator decides: where things lie, what text there is, what the site consents to."""

from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from consortium.canonical import Fact, replace
from consortium.capacity import Allocation, Window
from consortium.flower.runs import Config, app_reference
from consortium.ids import CampaignId, Language, SiteName, campaign_id, site_name
from consortium.jobs import Purpose
from consortium.loading import Problems, read
from consortium.proxies import check_proxy
from policies.languages import Languages, load_languages, normalise_all
from policies.licences import load_licences
from policies.ranges import COURIER, AddressOrCourier, Count, Fraction, Natural, Positive
from policies.site_profile import SiteProfile, fill_in_profile, profile_names
from policies.windows import time_zone
from site_agent.core.cleaning import Cleaning
from site_agent.limits import Granted, OpenHours
from site_agent.ssh.settings import Ssh, beside


class Text(Fact):
    """One language's text in one folder or file; it is read here and never leaves."""

    language: Language
    path: str  #: file or folder; absolute once loaded
    #: auto: by the file's ending; .zst and .gz are seen through
    format: Literal["auto", "txt", "jsonl", "parquet", "wet"] = "auto"
    access: Literal["private", "public"]  #: public: may serve as the campaign's replayed public slice
    licence: str  #: SPDX, or LicenseRef-... for a contract of your own
    text_field: str = "text"  #: of jsonl and parquet
    id_field: str | None = None  #: what translations share; None: "id", where a document has one
    other_languages: Literal["keep", "drop"] = "keep"  #: documents that say they are in another language
    #: documents whose own fields say that robots.txt forbids them
    opted_out: Literal["keep", "drop"] = "drop"
    source: str | None = None  #: name, DOI or URL of the data set, for the manifest, as all that follows
    redistribution: str | None = None  #: a class of policies/licences.yaml; None: the licence's
    robots: str | None = None  #: how opt-outs were honoured when it was gathered
    retention: str | None = None  #: a date until which the text may be kept, or a sentence


class Consent(Fact):
    """What the coordinator may ask of this site. A list left out allows all; an empty one allows nothing.

    Merging is different: it brings other sites' deltas onto this machine, so ``purposes`` has to name it.
    """

    campaigns: tuple[CampaignId, ...] | None = None
    languages: tuple[Language, ...] | None = None
    purposes: tuple[Purpose, ...] | None = None
    steps_max: Count | None = None  #: optimizer steps of one training job
    gpus_max: Natural | None = None  #: GPUs in use at once by all jobs of the consortium here
    #: admins whose campaigns are taken, by the name in their certificates
    senders: tuple[str, ...] | None = None
    #: sites that may get this site's deltas; the coordinator does
    merged_by: tuple[SiteName, ...] | None = None

    @property
    def merges(self) -> bool:
        """Whether this site lends itself to merging; the coordinator is told."""
        return self.purposes is not None and Purpose.MERGE in self.purposes


class Flower(Fact):
    """Which Flower apps may run here: code of other people's, so none unless it is named. Nothing is ever fetched."""

    apps: tuple[str, ...] = ()  #: ClientApps, ``module:attribute``, installed where the jobs run
    node_config: Config = {}  #: what every app here is told of this site: Flower's own ``node_config``


class Log(Fact):
    """Where the agent's log goes; nothing in it is secret."""

    file: str | None = None  #: absolute once loaded; None: stderr
    bytes_max: Count = 10_000_000  #: of one file, before it is set aside as <file>.1
    keep: Natural = 5  #: files set aside


class Engine(Fact):
    """How this site computes a training step. For speed and memory: the mathematics is the order's."""

    #: the program of the model. auto: our own on a CPU, transformers (with Liger, where it is) on a GPU
    backend: Literal["auto", "native", "transformers", "liger"] = "auto"
    #: whether the native model's blocks are compiled. auto: on a GPU, where the job is long enough
    compile: Literal["auto", "on", "off"] = "auto"
    #: whether the native model's loss has all logits at once. auto: while they are few
    head: Literal["auto", "whole", "in_parts"] = "auto"
    head_bytes: Count | None = None  #: for the logits that are there at once; None: 256 MiB, on a GPU 4 GiB
    #: what computing in bf16 reads: weights in float32, cast each time, or in bf16 beside masters in float32
    weights: Literal["float32", "bf16"] = "float32"
    float8: bool = False  #: the native model's linear layers in float8, by torchao, on GPUs that have it


class SiteConfig(Fact):
    """The site's file, resolved: languages as the consortium spells them, paths absolute."""

    site: SiteName
    coordinator: AddressOrCourier
    enrolment: AddressOrCourier
    proxy: str | None = None  #: http://host:port; None: as the environment says, in either case; "": none
    home: str  #: spool, blobs, prepared text and keys lie below it
    slots: Count = 1  #: jobs at once
    launcher: Literal["local", "slurm"] = "local"
    #: how the site's Slurm wants its jobs; a preset, or one with keys changed
    slurm: SiteProfile | None = None
    ssh: Ssh | None = None  #: the site is driven from outside; then ``text`` has paths of the site
    sync_seconds: Positive = 10.0  #: between Syncs when nothing is new; a lease outlives several
    lives_max: Count = 3  #: lives in a row that get no further, before an attempt failed
    lives_total_max: Count = 100  #: lives of one attempt at all
    stall_minutes: Positive = 60.0  #: a running job without a new progress line is started again after this
    torch_threads: Count = 1  #: per process of a job; the bits of a CPU job depend on it
    ranks: Count = 1  #: processes of one job of the local launcher; more than one: by torchrun
    gpus: Natural = 0  #: GPUs that one job of the local launcher uses; for the account of GPU-hours
    #: how ranks share a model: each has all of it, a shard, or a shard within its node; None: as the profile says
    sharding: Literal["none", "fsdp", "hsdp"] | None = None
    device_sequences: Count | None = None  #: most sequences of one forward pass; None: all of a rank's
    engine: Engine = Engine()
    allocation: Granted | None = None  #: GPU-hours for the consortium; None: no limit
    timezone: str = "UTC"  #: IANA name; of windows, and of the allocation's last day
    windows: tuple[OpenHours, ...] = ()  #: when work may be given; empty: always
    outside_windows: Literal["go_on", "pause"] = "go_on"  #: what running jobs do when a window closes
    heldout_share: Fraction = 0.1  #: of each language's documents, for evaluation only
    text: tuple[Text, ...] = ()
    consent: Consent = Consent()
    flower: Flower = Flower()
    log: Log = Log()
    cleaning: Cleaning = Cleaning()
    metrics_port: Count | None = None  #: on 127.0.0.1: /metrics, /healthz, /readyz

    @property
    def by_courier(self) -> bool:
        """Whether no network leads to the coordinator, so that bundles carry everything."""
        return self.coordinator == COURIER

    @property
    def granted(self) -> Allocation | None:
        return self.allocation.told(self.timezone) if self.allocation else None

    @property
    def open_hours(self) -> tuple[Window, ...]:
        return tuple(window.told(self.timezone) for window in self.windows)

    @property
    def gpus_of_job(self) -> int:
        """GPUs that one job here holds while it runs."""
        if self.launcher == "slurm" and self.slurm is not None:
            return self.slurm.nodes * self.slurm.gpus_per_node
        return self.gpus

    @property
    def sharding_of_job(self) -> Literal["none", "fsdp", "hsdp"]:
        """The site's own word, else its profile's."""
        profile = self.slurm.sharding if self.launcher == "slurm" and self.slurm is not None else "none"
        return self.sharding or profile

    @property
    def proxy_setting(self) -> str | None:
        """The site's own word, else its profile's; None: the environment decides."""
        profile = self.slurm.proxy if self.slurm is not None else ""
        return self.proxy if self.proxy is not None else profile or None


def prepared_text(config: SiteConfig) -> Path:
    """The folder for what is derived from the site's text; it never leaves the site either."""
    return Path(config.ssh.root if config.ssh else config.home) / "text"


def load_site_config(path: str | Path, languages: Languages | None = None) -> SiteConfig:
    """The site config in ``path``; relative paths in it are relative to its folder.

    Raises BadInput with every ``file:line`` that is wrong. Whether the text exists, ``site doctor`` asks.
    """
    document = read(path)
    problems = Problems(document)
    fill_in_profile(document, problems)
    problems.check(document.value, SiteConfig)
    problems.raise_if_any()
    config = msgspec.convert(document.value, SiteConfig)
    if config.launcher == "slurm" and config.slurm is None:
        problems.add(
            ("launcher",), f"slurm needs a profile; add 'slurm:' with one of: {', '.join(profile_names())}"
        )
    known = languages or load_languages()
    licences = load_licences()

    def resolved(index: int, text: Text) -> Text:
        place = ("text", index)
        code = problems.attempt((*place, "language"), known.normalise, text.language)
        judge = partial(licences.judge, access=text.access)
        verdict = problems.attempt((*place, "licence"), judge, text.licence)
        if verdict is not None and not verdict.allowed:
            problems.add((*place, "access"), verdict.reason)
        if verdict is not None and text.redistribution is not None:
            say = partial(licences.redistribution, text.licence)
            problems.attempt((*place, "redistribution"), say, text.redistribution)
        path = text.path if config.ssh else document.beside(text.path)
        if not path.startswith("/"):
            problems.add((*place, "path"), f"{path!r} has to be an absolute path of the site, with `ssh`")
        return replace(text, language=code or text.language, path=path)

    texts = tuple(resolved(index, text) for index, text in enumerate(config.text))
    consent = config.consent
    if consent.languages is not None:
        allowed = normalise_all(consent.languages, ("consent", "languages"), problems, known)
        consent = replace(consent, languages=allowed)
    problems.attempt(("site",), site_name, config.site)
    if problems.attempt(("timezone",), time_zone, config.timezone) is not None:
        if config.allocation is not None:
            problems.attempt(("allocation", "until"), config.allocation.told, config.timezone)
        for index, window in enumerate(config.windows):
            problems.attempt(("windows", index), window.told, config.timezone)
    for index, app in enumerate(config.flower.apps):
        problems.attempt(("flower", "apps", index), app_reference, app)
    for index, campaign in enumerate(consent.campaigns or ()):
        problems.attempt(("consent", "campaigns", index), campaign_id, campaign)
    for index, name in enumerate(consent.merged_by or ()):
        problems.attempt(("consent", "merged_by", index), site_name, name)
    if config.proxy_setting is not None:
        problems.attempt(("proxy",), check_proxy, config.proxy_setting)
    if config.ssh is not None and config.launcher != "slurm":
        problems.add(("ssh",), "drives a site's Slurm; say `launcher: slurm` and name a profile")
    problems.raise_if_any()
    ssh = beside(config.ssh, document.beside) if config.ssh else None
    home = document.beside(config.home)
    log = replace(config.log, file=document.beside(config.log.file)) if config.log.file else config.log
    return replace(config, home=home, text=texts, consent=consent, ssh=ssh, log=log)
