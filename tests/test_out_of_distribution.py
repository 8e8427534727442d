"""The benchmark of out-of-distribution rules: what it chooses on and measures on, and the rules themselves."""

import numpy as np
import pytest
from PIL import Image

from app.core.settings import Settings
from benchmarks import out_of_distribution
from benchmarks.foreign_images import SPOILED, View, Views, check_sources, foreign_images
from benchmarks.out_of_distribution import CHOSEN_ON, LAST_LAYER, SERVED, Outputs, encode, make_rules, report
from benchmarks.serve_models import build
from ml.models.base import EMBEDDING, STAGES
from ml.registry.reference_embeddings import Reference


@pytest.fixture(scope="module")
def kinds() -> dict[str, Views]:
    return foreign_images(Settings())


def test_no_source_is_both_chosen_on_and_held_out(kinds: dict[str, Views]) -> None:
    sources = {kind: {view.source for view in views} for kind, views in kinds.items()}
    chosen_on = set().union(*(own for kind, own in sources.items() if kind in CHOSEN_ON))
    held_out = set().union(*(own for kind, own in sources.items() if kind not in CHOSEN_ON))
    assert len(chosen_on) > 20
    assert len(held_out) > 20
    assert not chosen_on & held_out
    assert kinds.keys() >= {"radiographs", "ultrasound", "photographs", "grey photographs", "charts", "screenshots"}


def test_every_photograph_is_in_one_kind_whatever_its_views(kinds: dict[str, Views]) -> None:
    colour, grey = kinds["photographs"], kinds["grey photographs"]
    thumbnails = [{view.image.convert("L").resize((16, 16)).tobytes() for view in views} for views in (colour, grey)]
    assert not thumbnails[0] & thumbnails[1]
    scenes = {view.source for view in grey}
    assert len(grey) > len(scenes) > 5, "several views of a source"
    motorcycles = [view for view in (*colour, *grey) if view.source == "motorcycle"]
    assert len({view in colour for view in motorcycles}) == 1, "two cameras took one scene"
    assert {view.image.mode for view in grey} == {"L"}


def test_a_source_of_two_kinds_is_refused() -> None:
    image = Image.new("L", (8, 8))
    check_sources({"photographs": [View("cat", image), View("cat", image)], "charts": [View("chart 0", image)]})
    with pytest.raises(ValueError, match="cat is a source of photographs and of grey photographs"):
        check_sources({"photographs": [View("cat", image)], "grey photographs": [View("cat", image)]})


def test_the_served_rule_is_the_distance_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_distribution, "_CHANNELS", (16, 24))
    random = np.random.default_rng(0)

    def outputs(count: int) -> Outputs:
        # The sum of the channels of all stages, twice.
        sizes = {EMBEDDING: 8, STAGES: 2 * 40, "modality": 2, "logits": 2, "mirrored": 2}
        return {name: random.normal(size=(count, size)).astype(np.float32) for name, size in sizes.items()}

    train, asked = outputs(40), outputs(5)
    rules = make_rules(train)
    names = [str(number) for number in range(40)]
    reference = Reference.build(names, np.ones(40, dtype=np.bool_), train[EMBEDDING], train[STAGES])
    for rule, kind in ((SERVED, "stages"), (LAST_LAYER, "mahalanobis")):
        assert np.array_equal(rules[rule](asked), reference.distance_by(kind)(asked))  # type: ignore[arg-type]  # names of distances
    # The first stage has 16 channels: their means, then their standard deviations.
    changed = asked | {STAGES: asked[STAGES].copy()}
    changed[STAGES][:, 16:32] += 100.0
    means = rules["all stages, mean: Mahalanobis"]
    assert np.array_equal(means(changed), means(asked))
    assert not np.array_equal(rules[SERVED](changed), rules[SERVED](asked))


def test_the_report_counts_sources_beside_views(capsys: pytest.CaptureFixture[str]) -> None:
    model, random = build("compact"), np.random.default_rng(1)

    def pictures(count: int) -> list[Image.Image]:
        return [Image.fromarray(random.integers(0, 256, (40, 40), dtype=np.uint8)) for _ in range(count)]

    train, dev = encode(model, pictures(12)), encode(model, pictures(6))
    outputs = {kind: encode(model, pictures(count)) for kind, count in (("charts", 4), ("radiographs", 6), ("tiny", 5))}
    report(model, train, dev, outputs, {"charts": 4, "radiographs": 2})
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("charts") and "chosen on     4 views of   4 sources" in line for line in lines)
    assert any(line.startswith("radiographs") and "held out      6 views of   2 sources" in line for line in lines)
    assert any(line.startswith("tiny") and "spoiled" in line for line in lines)
    assert any(line.startswith(f"Served: {LAST_LAYER}. Best AUROC") for line in lines), "it has no stages"
    assert lines[-1].startswith("Held-out kinds, 6 views of 2 sources: AUROC")


def test_skull_stripping_is_that_of_the_corruption_table() -> None:
    white = Image.new("L", (100, 50), 255)
    stripped = np.asarray(SPOILED["skull-stripped"](white))
    assert (stripped[25] > 0).sum() == pytest.approx(60, abs=2)
    assert (stripped[:, 50] > 0).sum() == pytest.approx(30, abs=2)
