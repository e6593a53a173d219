import dataclasses
import json
import pathlib

import pytest

from trainer.config import RunConfig, TrainConfig
from trainer.loop import workdir


def changed(config: TrainConfig, **data) -> TrainConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


def test_a_workdir_holds_configuration_fingerprints_and_tokenizer(tmp_path, tiny):
    folder = tmp_path / "a" / "b"
    workdir.claim(folder, tiny, "f00")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["config.json", "tokenizer.model"]
    kept = json.loads((folder / "config.json").read_text())
    assert kept["fingerprints"]["shards"] == "f00"
    own = changed(tiny, tokenizer=str(folder / "tokenizer.model"))
    assert workdir.load_config(folder) == own


def test_the_same_configuration_may_go_on(tmp_path, tiny):
    workdir.claim(tmp_path, tiny, "f00")
    workdir.claim(tmp_path, tiny, "f00")
    workdir.claim(tmp_path, workdir.load_config(tmp_path), "f00")


def test_how_it_is_run_and_where_the_tokenizer_lies_may_change(tmp_path, tiny):
    workdir.claim(tmp_path / "work", tiny, "f00")
    moved = tmp_path / "moved.model"
    moved.write_bytes(pathlib.Path(tiny.data.tokenizer).read_bytes())
    other = dataclasses.replace(
        changed(tiny, tokenizer=str(moved)), run=RunConfig(n_workers=3)
    )
    workdir.claim(tmp_path / "work", other, "f00")


def test_another_value_is_named_with_the_old_one(tmp_path, tiny):
    workdir.claim(tmp_path, tiny, "f00")
    with pytest.raises(ValueError, match=r"^data\.batch_size=9: expected 8 as in .*"):
        workdir.claim(tmp_path, changed(tiny, batch_size=9), "f00")


def test_other_shards_are_refused(tmp_path, tiny):
    workdir.claim(tmp_path, tiny, "f00")
    with pytest.raises(ValueError, match=r"^fingerprints\.shards='f01': expected 'f0"):
        workdir.claim(tmp_path, tiny, "f01")


def test_another_tokenizer_is_refused(tmp_path, tiny):
    workdir.claim(tmp_path / "work", tiny, "f00")
    other = tmp_path / "other.model"
    other.write_bytes(b"other")
    with pytest.raises(ValueError, match=r"^fingerprints\.tokenizer="):
        workdir.claim(tmp_path / "work", changed(tiny, tokenizer=str(other)), "f00")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("", r"config\.json: Expecting value"),
        ("[]", r"config\.json: expected the config\.json of a workdir"),
        ('{"config": {}}', "expected the config.json of a workdir"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, tiny, contents, message):
    (tmp_path / "config.json").write_text(contents)
    with pytest.raises(ValueError, match=message):
        workdir.claim(tmp_path, tiny, "f00")


def test_a_workdir_of_an_earlier_version_must_be_trained_again(tmp_path, tiny):
    workdir.claim(tmp_path, tiny, "f00")
    path = tmp_path / "config.json"
    contents = json.loads(path.read_text())
    contents["config"]["optimiser"] = contents["config"].pop("optimizer")
    path.write_text(json.dumps(contents))
    with pytest.raises(
        ValueError, match=r"config\.json: no field 'optimiser' "
    ) as error:
        workdir.load_config(tmp_path)
    assert str(error.value).endswith("earlier version wrote must be trained again")
    assert len(str(error.value).removeprefix(str(path))) < 300
    with pytest.raises(ValueError, match="earlier version wrote"):
        workdir.claim(tmp_path, tiny, "f00")


def test_a_folder_that_is_no_workdir_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: No such file .* a workdir"):
        workdir.load_config(tmp_path)
