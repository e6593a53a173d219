"""The graphs of all stages, as a runner elsewhere gets them; nothing is submitted."""

import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_runner_api_pb2 as proto
from apache_beam.transforms.environments import DockerEnvironment

from pipeline.captioning.flag_stage import Flag
from pipeline.captioning.stage import Caption
from pipeline.config.curation import CurationConfig, Resources
from pipeline.config.selection import (
    KeepFraction,
    NearestToSeeds,
    NearSeeds,
    Retrieval,
    SeededClusters,
    SelectionConfig,
)
from pipeline.engine import lot_plan
from pipeline.engine.run_folder import RunFolder
from pipeline.export.stage import Export
from pipeline.scoring.encoder_handler import EncoderHandler
from pipeline.scoring.stage import Score
from pipeline.selection import stage as selection
from pipeline.sources.shards import Shard
from recipes.assignments import override
from tests.support import tiny_run
from tests.support.score_tables import Row, make_run

GPU = "type:nvidia-l4;count:1;install-nvidia-driver"

DATAFLOW = (
    *("--runner=DataflowRunner", "--dry_run=True", "--no_auth", "--project=project"),
    *("--region=europe-west4", "--temp_location=gs://bucket/temp", "--job_name=job"),
    *("--setup_file=./setup.py", "--sdk_container_image=registry/tips:1"),
)

PAR_DO = common_urns.primitives.PAR_DO.urn
PICKLED = (python_urns.PICKLED_DOFN_INFO, python_urns.PICKLED_COMBINE_FN)

UNPICKLE = """
import pickle, sys
from apache_beam.internal import pickler
for payload in pickle.load(sys.stdin.buffer):
    pickler.loads(payload)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = tiny_run.make_run(tmp_path, {"web": tiny_run.plain_rows(2)})
    scorers, captioners = Resources(min_ram_gb=8), Resources(16, GPU)
    config = dataclasses.replace(
        run.config, score_workers=scorers, caption_workers=captioners
    )
    return dataclasses.replace(run, config=config)


def graph(run: RunFolder, *stages: beam.PTransform) -> proto.Pipeline:
    """Each stage on lots of its own, in a container."""
    pipeline = beam.Pipeline()
    add(pipeline, run, stages)
    container = DockerEnvironment.from_container_image("registry/tips:1")
    return pipeline.to_runner_api(default_environment=container)


def add(
    pipeline: beam.Pipeline, run: RunFolder, stages: Sequence[beam.PTransform]
) -> None:
    for i, stage in enumerate(stages):
        _ = pipeline | f"List {i}" >> beam.Create(run.lots) | f"Stage {i}" >> stage


def name_to_hints(graph: proto.Pipeline) -> dict[str, dict[str, bytes]]:
    """Those of the steps that have any."""
    environments = graph.components.environments
    found = {}
    for step in graph.components.transforms.values():
        hints = environments[step.environment_id].resource_hints
        if step.environment_id and hints:
            found[step.unique_name] = dict(hints)
    return found


def pickled(graph: proto.Pipeline) -> Iterator[bytes]:
    """What workers unpickle: functions of steps and of combiners."""
    for step in graph.components.transforms.values():
        if step.spec.urn == PAR_DO:
            function = proto.ParDoPayload.FromString(step.spec.payload).do_fn
        elif step.spec.urn == common_urns.composites.COMBINE_PER_KEY.urn:
            function = proto.CombinePayload.FromString(step.spec.payload).combine_fn
        else:
            continue
        if function.urn in PICKLED:
            yield function.payload


def selecting_run(folder: Path, retrieval: Retrieval) -> RunFolder:
    config = SelectionConfig(
        alignment=KeepFraction(0.5), max_evaluation_similarity=0.9, retrieval=retrieval
    )
    shards = {"web/1": [Row(), Row(embedding=(0.0, 1.0))]}
    sets = {"evaluation": {"coco/1": [Row()]}, "seeds": {"flowers/1": [Row()]}}
    return make_run(str(folder), config, shards, **sets)


def stages_of(run: RunFolder) -> tuple[beam.PTransform, ...]:
    score = Score(run, EncoderHandler(run.config.encoder))
    return score, Caption(run, run.config.granularities), Flag(run), Export(run)


def test_only_steps_with_a_model_ask_for_resources(run):
    found = name_to_hints(graph(run, *stages_of(run)))
    score, caption = "Stage 0/Score shards", "Stage 1/Caption short and long"
    own = {name for name in found if not name.startswith((score, caption))}
    assert not own
    min_ram, accelerator = (
        common_urns.resource_hints.MIN_RAM_BYTES.urn,
        common_urns.resource_hints.ACCELERATOR.urn,
    )
    assert found[score] == {min_ram: b"8000000000"}
    assert found[caption] == {min_ram: b"16000000000", accelerator: GPU.encode()}


def test_local_runners_accept_resource_hints(run):
    stage = Caption(run, run.config.granularities, tiny_run.FakeHandler)
    assert tiny_run.run_stage(stage, run.lots)["captions_written"] == 4


def test_resources_of_model_steps_change_no_result(run):
    before = CurationConfig(run.config.encoder, run.config.selection)
    after = dataclasses.replace(before, caption_workers=Resources(16, GPU))
    assert repr(after) == repr(before)  # which a manifest keeps
    assert override(after, ["caption_workers.min_ram_gb=32"]).caption_workers == (
        Resources(32, GPU)
    )


@pytest.mark.parametrize("resources", [{"min_ram_gb": -1}, {"accelerator": "gpu"}])
def test_resources_that_no_runner_reads_are_refused(resources):
    with pytest.raises(ValueError, match="expected"):
        Resources(**resources)


@pytest.mark.slow
def test_a_fresh_interpreter_reads_all_functions(run, tmp_path):
    graphs = [graph(run, *stages_of(run))]
    for retrieval in (
        NearSeeds(0.5),
        NearestToSeeds(k=1),
        SeededClusters(n_clusters=2, min_seeds=1, max_per_cluster=1),
    ):
        selecting = selecting_run(tmp_path / type(retrieval).__name__, retrieval)
        graphs.append(graph(selecting, selection.Select(selecting)))
    payloads = [payload for one in graphs for payload in pickled(one)]
    assert len(payloads) > 50
    assert all(len(payload) < 1 << 16 for payload in payloads)
    command = [sys.executable, "-c", UNPICKLE]
    subprocess.run(command, input=pickle.dumps(payloads), check=True)


def test_functions_unpickle_and_do_not_grow_with_the_number_of_lots(run):
    (lot,) = run.lots
    shards = [Shard(lot.source, f"gs://b/{i:05d}.tar") for i in range(999)]
    more = map(lot_plan.single, shards)
    many = dataclasses.replace(run, lots=(lot, *more))
    payloads = list(pickled(graph(many, *stages_of(many))))
    assert len(payloads) > 20
    for payload in payloads:
        pickler.loads(payload)
    assert max(map(len, payloads)) < 1 << 14


@pytest.mark.cloud
def test_dataflow_builds_a_job_of_every_stage(run, tmp_path, monkeypatch):
    fake_gcs = pytest.importorskip("tests.support.fake_gcs")
    selecting = selecting_run(tmp_path / "select", NearestToSeeds(k=1))
    stages = (*stages_of(run), selection.Select(selecting))
    with fake_gcs.FakeGcs() as gcs:
        gcs.lead_beam_here(monkeypatch)
        pipeline = beam.Pipeline(options=PipelineOptions(list(DATAFLOW)))
        add(pipeline, run, stages)
        job = pipeline.run().job
    expect_containers(job.proto_pipeline)
    found = name_to_hints(job.proto_pipeline)
    models = ("Stage 0/Score shards", "Stage 1/Caption short and long")
    assert {name for name in found if not name.startswith(models)} == set()
    assert found.keys() >= set(models)


def expect_containers(graph: proto.Pipeline) -> None:
    """Expects steps to run in the given image, with the code staged next to it."""
    steps = graph.components.transforms.values()
    names = {s.environment_id for s in steps if s.spec.urn == PAR_DO}
    assert names
    for name in names:
        environment = graph.components.environments[name]
        assert environment.urn == common_urns.environments.DOCKER.urn
        docker = proto.DockerPayload.FromString(environment.payload)
        assert docker.container_image == "registry/tips:1"
        roles = [
            proto.ArtifactStagingToRolePayload.FromString(d.role_payload).staged_name
            for d in environment.dependencies
        ]
        assert any(name.endswith(".tar.gz") for name in roles), roles
