"""Where a model's name leads on this machine, and the refusal that lists where it was sought."""

from pathlib import Path

import pytest

from consortium.errors import BadInput
from consortium.merging.recipes.model_places import find_model, hub_cache

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work").mkdir()
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def cached(home: Path, name: str, commit: str = COMMIT, ref: str | None = "main") -> Path:
    repository = home / "hub" / ("models--" + name.replace("/", "--"))
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    if ref is not None:
        (repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / ref).write_text(commit + "\n")
    return snapshot


def found(name: str, here: Path, *folders: Path, file: bool = False) -> Path:
    return find_model(name, here / "recipes", folders, {"HF_HOME": str(here / "hf")}, file)


def test_a_name_is_sought_in_this_order(here: Path) -> None:
    folder = here / "models"
    places = [
        cached(here / "hf", "org/name"),
        folder / "org/name",
        here / "recipes/org/name",
        here / "work/org/name",
    ]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        assert found("org/name", here, here / "empty", folder) == place


def test_a_path_may_be_absolute_or_of_this_home_or_climb(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "m").mkdir()
    assert found(str(here / "m"), here) == found("../m", here) == here / "m"
    monkeypatch.setenv("HOME", str(here))
    assert found("~/m", here) == here / "m"


def test_a_file_is_a_delta_and_a_folder_a_model(here: Path) -> None:
    (here / "recipes/d").write_bytes(b"x")
    assert found("d", here, file=True) == here / "recipes/d"
    with pytest.raises(BadInput):
        found("d", here)
    (here / "work/d").mkdir()
    assert found("d", here) == here / "work/d"
    assert found("d", here, file=True) == here / "recipes/d"


def test_the_cache_is_read_by_branch_tag_or_commit(here: Path) -> None:
    main = cached(here / "hf", "org/name")
    tagged = cached(here / "hf", "org/name", OTHER, "refs/pr/1")
    assert (
        found("org/name", here) == found("org/name@main", here) == found(f"org/name@{COMMIT}", here) == main
    )
    assert found(f"org/name@{OTHER}", here) == found("org/name@refs/pr/1", here) == tagged
    plain = cached(here / "hf", "gpt2")
    assert found("gpt2", here) == plain


@pytest.mark.parametrize(
    "name", ["org/name@v2", f"org/name@{OTHER}", "org/name@../../x", "org/name@", "a/b/c"]
)
def test_what_the_cache_lacks_is_refused(name: str, here: Path) -> None:
    cached(here / "hf", "org/name")
    (here / "hf/hub/models--org--name/x").write_text(COMMIT)
    if name == "org/name@":
        assert found(name, here).name == COMMIT  # no revision after all
        return
    with pytest.raises(BadInput, match="is not on this machine"):
        found(name, here)


@pytest.mark.parametrize("content", ["../../../../elsewhere", "", "main", "\N{BULLET}"])
def test_a_ref_that_holds_no_commit_leads_nowhere(content: str, here: Path) -> None:
    snapshot = cached(here / "hf", "org/name")
    (snapshot.parent.parent / "refs/main").write_text(content, encoding="utf-8")
    with pytest.raises(BadInput, match="is not on this machine"):
        found("org/name", here)


def test_the_refusal_lists_where_it_looked(here: Path) -> None:
    with pytest.raises(BadInput) as caught:
        found("org/name", here, here / "models")
    for place in ("work/org/name", "recipes/org/name", "models/org/name", "hf/hub/models--org--name"):
        assert str(here / place) in str(caught.value)
    assert "Nothing is downloaded here: fetch it first, or give its folder" in str(caught.value)


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_what_is_no_name_is_refused(name: str, here: Path) -> None:
    with pytest.raises(BadInput, match="no name at all"):
        found(name, here)


def test_the_cache_lies_where_hugging_face_puts_it(here: Path) -> None:
    assert hub_cache({"HF_HUB_CACHE": "/c", "HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}) == Path("/c")
    assert hub_cache({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}) == Path("/h/hub")
    assert hub_cache({"XDG_CACHE_HOME": "/x"}) == Path("/x/huggingface/hub")
    assert hub_cache({}) == Path.home() / ".cache/huggingface/hub"
