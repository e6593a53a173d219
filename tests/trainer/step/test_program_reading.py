"""What `benchmarks.hlo` reads in a program: loops, exchanges, products."""

import pytest

from benchmarks import hlo

# As XLA writes it, shortened: a gather in a loop of five rounds, a reduction after it.
PROGRAM = """
HloModule jit_step, is_scheduled=true

%region_sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (input: f32[8,64]) -> f32[1,64] {
  %input = f32[8,64]{1,0} parameter(0)
  ROOT %all-reduce.2 = f32[8,64]{1,0} all-reduce(%input), replica_groups={{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}, to_apply=%region_sum
}

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %x = bf16[4,8]{1,0} get-tuple-element(%p), index=1
  %all-gather.1 = bf16[32,8]{1,0:T(8,128)(2,1)} all-gather(%x), replica_groups=mesh['axis_0'=2,'axis_1'=8], device_ids=([8,2]T(1,0)) {'axis_1'}, dimensions={0}
  %wide = f32[32,8]{1,0} convert(%all-gather.1)
  %dot.1 = f32[4,32]{1,0} dot(%x, %wide), metadata={op_name="jit(step)/while/body/dot_general"}, backend_config={"window_config":{"estimated_cycles":"700"}}
  ROOT %out = (s32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%i, %x)
}

%condition (q: (s32[], bf16[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %q = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (argument: bf16[4,8]) -> f32[] {
  %argument = bf16[4,8]{1,0} parameter(0)
  %while.1 = (s32[]{:T(128)}, bf16[4,8]{1,0}) while(%argument), condition=%condition, body=%body
  %fusion.1 = f32[1,64]{1,0} fusion(%while.1), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %all-reduce.1 = (f32[10]{0}, f32[6]{0}) all-reduce(%while.1, %while.1), replica_groups=[8,2]<=[16], to_apply=%region_sum
}
"""  # noqa: E501


def test_bytes_are_those_of_a_ring_and_loops_count_as_often_as_they_run():
    found = {one.kind: one for one in hlo.collectives(PROGRAM)}
    assert {kind: one.n_devices for kind, one in found.items()} == {
        "all-gather": 8,
        "reduce-scatter": 8,
        "all-reduce": 2,
    }
    assert {kind: one.sent_bytes for kind, one in found.items()} == {
        "all-gather": 5 * 32 * 8 * 2 * 7 / 8,
        "reduce-scatter": 8 * 64 * 4 * 7 / 8,
        "all-reduce": 2 * 16 * 4 / 2,
    }


def test_cycles_and_types_of_products_are_read():
    (product,) = hlo.products(PROGRAM)
    assert product == hlo.Product(("bf16", "f32"), "jit(step)/while/body/dot_general")
    cycles = [x.n_runs * x.estimated_cycles for x in hlo.operations(PROGRAM)]
    assert sum(cycles) == 5 * 700
    cycles = [x.n_runs * x.estimated_cycles for x in hlo.operations(PROGRAM, {5: 40})]
    assert sum(cycles) == 40 * 700


@pytest.mark.parametrize("constant", ["", "  %other = s32[] constant(6)\n"])
def test_a_loop_whose_rounds_are_not_known_is_an_error(constant):
    line = "  %limit = s32[]{:T(128)} constant(5)\n"
    program = PROGRAM.replace(line, constant and line + constant)
    with pytest.raises(ValueError, match=r"while.1: expected one constant in its cond"):
        hlo.operations(program)
