"""Compiling for the batch shapes of a run: which, in which order, and what is said."""

from contextlib import contextmanager
from types import SimpleNamespace

from difftrain.training.warm_up import announce_compiling, compile_for, shapes_to_compile


class Said(list):
    """A reporter that also keeps what phases say."""

    say = list.append

    @contextmanager
    def phase(self, name, total=None):
        self.append(f"{name} ({total})")
        yield SimpleNamespace(begin=self.append, advance=lambda: self.append("done"))


def shape(name, times=1):
    return SimpleNamespace(name=name, times=times)


def test_few_shapes_are_all_compiled_without_a_word():
    shapes, said = [shape("large"), shape("small")], Said()
    assert shapes_to_compile(shapes, 2, said) == shapes
    assert said == []


def test_of_many_shapes_the_largest_and_the_most_frequent_are_compiled():
    shapes, said = [shape("a", 0), shape("b", 1), shape("c", 9), shape("d", 2), shape("e", 9)], Said()
    assert [each.name for each in shapes_to_compile(shapes, 3, said)] == ["a", "c", "e"]
    assert "batches come in 5 shapes, and compile_shapes_limit is 3: only" in said[0]
    assert [each.name for each in shapes_to_compile(shapes, 1, said)] == ["a"]


def test_each_shape_is_named_and_computed_once():
    said = Said()
    coming = SimpleNamespace(read=lambda shape: f"a batch of {shape.name}")
    compile_for([shape("b"), shape("c")], coming, said.append, said, before=1)
    assert said == [
        "compile for the other batch shapes (2)",
        "compile 2 of 3: b", "a batch of b", "done",
        "compile 3 of 3: c", "a batch of c", "done",
    ]  # fmt: skip


def test_one_shape_needs_no_phase():
    said = Said()
    compile_for([], None, None, said, before=1)
    assert said == []


def micro_batches(*shapes):
    return [SimpleNamespace(shape=shape) for shape in shapes]


def test_a_shape_that_comes_uncompiled_is_announced_once():
    said, given = Said(), micro_batches("a", "b", "a", "c", "b", "")
    assert list(announce_compiling(iter(given), ["a"], said)) == given
    assert [line.split(";")[0] for line in said] == ["note: the first batch of b", "note: the first batch of c"]


def test_nothing_is_announced_where_nothing_is_compiled():
    said, given = Said(), micro_batches("a", "b")
    assert list(announce_compiling(iter(given), None, said)) == given
    assert said == []
