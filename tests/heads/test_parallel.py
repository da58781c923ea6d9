"""Heads trained by several processes: gradients equal those of one process with the whole batch."""

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from heads import Head, Needs, attach, create_head, freeze, list_heads
from heads.attached import Attached
from heads.names import BUILT_IN
from tests.heads.small_heads import DENSE, FITTING, OPTIONS, tensors
from tests.helpers import randomise, tiny_vit
from tests.old_torch import shards_by_part
from tests.timm_networks import BACKBONES as NETWORKS
from vitbackbone import BackboneSpec, Features, FusedBackbone, Member

SIZE = 24
RANKS = 2
OTHER = {"eomt": {"num_blocks": 2}, "dpt": {"dropout": 0.0}}  # what else each dense head is made with
# Not EoMT: it runs blocks and the norm, which the backbone's unit holds.
BY_PART = ["upernet", "linear_depth", "mlp"]
LOSSES = [*DENSE, "mlp", "concat"]
QUICK = ["upernet", "mlp"]  # one dense head with batch norms, and one classifier; the others are slow


def model_of(name: str) -> Attached:
    vit = tiny_vit(depth=6)
    head = randomise(create_head(name, vit.spec, **{**OPTIONS[name], **OTHER.get(name, {})}))
    return attach(vit, {"it": head}).train()


def batch_of(name: str) -> tuple[Tensor, Any]:
    """Four images, and targets with different shares of ignored pixels on the two processes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2 * RANKS, 3, SIZE, SIZE, generator=generator)
    if "depth" in name:
        targets = torch.rand(len(x), 1, SIZE, SIZE, generator=generator) + 0.5
        targets[0, :, 4:] = 0
        return x, targets
    if name not in DENSE:
        return x, torch.randint(0, 5, (len(x),), generator=generator)
    labels = torch.randint(0, 5, (len(x), SIZE, SIZE), generator=generator)
    labels[0], labels[1, 5:] = 255, 255
    return x, labels


def step(model: nn.Module, x: Tensor, targets: Any) -> float:
    loss = model(x, targets={"it": targets})["it"]
    loss.backward()
    return loss.item()


def whole(grad: Tensor) -> Tensor:
    return grad.full_tensor() if isinstance(grad, DTensor) else grad


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name.removeprefix("module."): p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in found.values()), [n for n, p in found.items() if p.grad is None]
    return {name: whole(p.grad).clone() for name, p in found.items()}


def ddp(model: Attached) -> nn.Module:
    return DistributedDataParallel(model)


def sharded(model: Attached) -> nn.Module:
    for block in model.backbone.blocks:
        fully_shard(block)
    return fully_shard(model)


def sharded_by_part(model: Attached) -> nn.Module:
    for part in (*model.heads.values(), model.backbone, model):
        fully_shard(part)
    return model


WRAPPERS: dict[str, Callable[[Attached], nn.Module]] = {"ddp": ddp, "sharded": sharded, "by part": sharded_by_part}


def rank_main(rank: int, folder: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    found: dict[str, Any] = {}
    for name in names:
        for kind, wrap in WRAPPERS.items():
            if kind == "by part" and name not in BY_PART:
                continue
            x, targets = (each.chunk(RANKS)[rank] for each in batch_of(name))
            plain = model_of(name)
            model = wrap(plain)
            try:
                for _ in range(2):  # DDP complains in the second step of a parameter without a gradient
                    model.zero_grad()
                    loss = step(model, x, targets)
                grads = gradients(model)
            except Exception as error:  # and the other tests go on
                found[name, kind] = f"{type(error).__name__}: {error}"
                distributed.barrier()
                continue
            statistics = {key: whole(value) for key, value in plain.state_dict().items() if "running" in key}
            found[name, kind] = (loss, grads, statistics)
            if kind == "ddp":
                found[name, "past"] = refusals(plain, name, x, targets)
    if names == QUICK:
        found["nested"] = nested(rank)
    else:
        found["unread"] = unread_steps(rank)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def refusals(plain: Attached, name: str, x: Tensor, targets: Any) -> list[str]:
    """Return the errors of calls that bypass DDP."""
    head = plain.heads["it"]
    with torch.no_grad():
        given = plain.features(x)["it"]
    calls = [lambda: plain.features(x), lambda: plain(x), lambda: plain.loss(x, {"it": targets})]
    said = []
    for call in [*calls, lambda: head.loss(targets, *given)]:
        try:
            call()
            said.append("")
        except RuntimeError as error:
            said.append(str(error))
    plain.eval()
    plain.features(x)  # in eval mode it is nobody's training
    return said


class Outer(nn.Module):
    """A module of a user's, with an attached model somewhere in it."""

    def __init__(self, model: Attached) -> None:
        super().__init__()
        self.inner = model

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        return self.inner(x, {"it": targets})["it"]


def nested(rank: int) -> dict[str, Tensor]:
    x, targets = (each.chunk(RANKS)[rank] for each in batch_of("upernet"))
    model = DistributedDataParallel(Outer(model_of("upernet")))
    model(x, targets).backward()
    return {key.removeprefix("inner."): grad for key, grad in gradients(model).items()}


def unread_steps(rank: int) -> list[str]:
    """Two steps on the outputs of every head. DDP must not miss a parameter."""
    wrong = []
    for name in sorted(BUILT_IN.keys() - FITTING.keys() - {"distilled"}):
        vit = tiny_vit(depth=6)
        options = {**OPTIONS[name], **({"layer": 2} if name == "map_pool" else {})}
        model = DistributedDataParallel(attach(vit, {"it": create_head(name, vit.spec, **options)}).train())
        try:
            for _ in range(2):
                output = tensors(model(torch.randn(2, 3, 2 * SIZE // 3, 2 * SIZE // 3))["it"])
                torch.stack([each.float().square().mean() for each in output]).sum().backward()
        except Exception as error:
            wrong.append(f"{name}: {error}"[:200])
            break
    return wrong


Ranks = list[dict[Any, Any]]


def spawn(folder: Path, names: list[str]) -> Ranks:
    torch.multiprocessing.spawn(rank_main, (str(folder), names), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def quick_ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return spawn(tmp_path_factory.mktemp("ranks"), QUICK)


@pytest.fixture(scope="module")
def other_ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return spawn(tmp_path_factory.mktemp("ranks"), [name for name in LOSSES if name not in QUICK])


@pytest.fixture
def ranks(name: str, request: pytest.FixtureRequest) -> Ranks:
    """Return the results of the processes that trained the head `name`."""
    return request.getfixturevalue("quick_ranks" if name in QUICK else "other_ranks")


def marks(name: str, kind: str = "") -> list[pytest.MarkDecorator]:
    slow = [] if name in QUICK else [pytest.mark.slow]
    return [*slow, shards_by_part] if (name, kind) == ("upernet", "by part") else slow


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    largest = max(grad.abs().max() for grad in theirs.values())
    for key, grad in theirs.items():
        assert (ours[key] - grad).abs().max() <= 2e-5 * largest, key


PAIRS = [
    pytest.param(name, kind, marks=marks(name, kind))
    for name in LOSSES
    for kind in WRAPPERS
    if kind != "by part" or name in BY_PART
]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_two_processes_train_as_one_with_the_whole_batch(name: str, kind: str, ranks: Ranks) -> None:
    alone = model_of(name)
    step(alone, *batch_of(name))
    alone.zero_grad()
    loss = step(alone, *batch_of(name))
    for rank in ranks:
        assert not isinstance(rank[name, kind], str), rank[name, kind]
        theirs, grads, statistics = rank[name, kind]
        assert theirs == pytest.approx(loss, rel=1e-5)
        same(grads, gradients(alone))
        for key, value in statistics.items():  # of batch norms
            assert (value - alone.state_dict()[key]).abs().max() <= 1e-5, key


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in LOSSES])
def test_who_goes_past_ddp_is_told(name: str, ranks: Ranks) -> None:
    for said in ranks[0][name, "past"]:
        assert "DistributedDataParallel (DDP), but was called directly" in said
        assert "model(images, targets=" in said


def test_a_model_within_a_module_of_the_users(quick_ranks: Ranks) -> None:
    alone = model_of("upernet")
    step(alone, *batch_of("upernet"))
    same(quick_ranks[1]["nested"], gradients(alone))


@pytest.mark.slow
def test_no_head_leaves_a_parameter_that_ddp_misses(other_ranks: Ranks) -> None:
    assert other_ranks[0]["unread"] == []


# ---- in one process -------------------------------------------------------------------------------------------------


class Mean(Head):
    def __init__(self, spec: BackboneSpec, layers: list[int], norm: bool = True, pooled: bool = False) -> None:
        super().__init__(spec, Needs(layers, norm, pooled=pooled))

    def forward(self, *features: Features) -> Tensor:
        found = [each.patches.mean() for each in features]
        return torch.stack(found + ([features[-1].pooled.mean()] if self.needs.pooled else []))


def learning(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_what_no_head_reads_has_no_gradient_until_one_does() -> None:
    vit = tiny_vit(depth=4)
    all_of_it = learning(vit)
    shallow = attach(vit, {"it": Mean(vit.spec, [1], norm=False)})
    left = learning(vit)
    assert all_of_it - left == {n for n in all_of_it if n.startswith(("blocks.2.", "blocks.3.", "norm."))}
    shallow(torch.randn(1, 3, 16, 16))["it"].sum().backward()
    assert {name for name, p in vit.named_parameters() if p.grad is not None} == left
    deep = attach(vit, {"it": Mean(vit.spec, [3])})
    assert learning(vit) == all_of_it
    attach(vit, {"it": Mean(vit.spec, [0], norm=False)})  # `deep` lives and reads all
    assert learning(vit) == all_of_it
    copied = copy.deepcopy(shallow.backbone)
    del deep, shallow
    gc.collect()
    attach(vit, {"it": Mean(vit.spec, [0], norm=False)})
    assert not any(name.startswith("blocks.1.") for name in learning(vit))
    attach(copied, {"it": Mean(vit.spec, [3])})
    assert learning(copied) == all_of_it


def test_a_copy_of_a_model_reads_its_own_backbone() -> None:
    vit = tiny_vit(depth=4)
    model = attach(vit, {"it": Mean(vit.spec, [3])})
    copied = copy.deepcopy(model)
    attach(copied.backbone, {"it": Mean(vit.spec, [0], norm=False)})
    assert learning(copied.backbone) == learning(vit)


def test_what_is_frozen_stays_so() -> None:
    vit = tiny_vit(depth=4)
    attach(vit, {"it": Mean(vit.spec, [1], norm=False)})
    freeze(vit)
    attach(vit, {"it": Mean(vit.spec, [3])})
    assert not learning(vit)


POOLING = {"map": {"pool": "map"}, "projection": {"projection_dim": 8}, "fc_norm": {"pool": "mean", "fc_norm": True}}


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("fields", POOLING.values(), ids=POOLING)
def test_a_pooling_that_is_not_read_has_no_gradient(fields: dict[str, Any], pooled: bool) -> None:
    vit = tiny_vit(**fields, final_norm="fc_norm" not in fields)
    head = Mean(vit.spec, [-1], norm=vit.has_norm, pooled=pooled)
    attach(vit, {"it": head})(torch.randn(1, 3, 16, 16))["it"].sum().backward()
    assert {name for name, p in vit.named_parameters() if p.grad is not None} == learning(vit)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_same_of_other_networks(name: str) -> None:
    network = copy.deepcopy(NETWORKS[name]).eval()
    every = learning(network)
    model = attach(network, {"it": Mean(network.spec, [0], norm=False)})
    model(torch.randn(1, 3, *network.spec.image_size))["it"].sum().backward()
    assert {key for key, p in network.named_parameters() if p.grad is not None} == learning(network) < every


def test_the_members_of_a_fused_backbone() -> None:
    both = FusedBackbone([Member(tiny_vit(), 1, False), Member(tiny_vit(patch_size=16), -1, True)])
    attach(both, {"it": Mean(both.spec, [0], norm=False)})(torch.randn(1, 3, 32, 32))["it"].sum().backward()
    assert {name for name, p in both.named_parameters() if p.grad is not None} == learning(both)


def test_targets_are_one_for_each_head() -> None:
    vit = tiny_vit(depth=6)
    heads = {name: create_head("linear", vit.spec, num_classes=3) for name in ("a", "b")}
    model = attach(vit, heads)
    x, labels = torch.randn(2, 3, 16, 16), torch.randint(0, 3, (2, 16, 16))
    losses = model.loss(x, {"a": labels, "b": labels})
    assert losses.keys() == {"a", "b"}
    want = heads["a"].loss(labels, *model.features(x)["a"])
    assert losses["a"].item() == pytest.approx(want.item())
    with pytest.raises(ValueError, match="targets are for a; want one for each head: a, b"):
        model(x, {"a": labels})
    with pytest.raises(ValueError, match="head 'token_projector' has no loss of its own; compute one from its output"):
        attach(vit, {"it": create_head("token_projector", vit.spec, width=4)}).loss(x, {"it": labels})


def test_torch_says_which_ddp_is_running() -> None:
    """torch's private names for the running DDP and for modules of FSDP: see `heads.parallel`."""
    assert DistributedDataParallel._active_ddp_module is None
    assert set(list_heads()) >= set(LOSSES)
    source = Path(distributed.fsdp.__file__).parent / "_fully_shard" / "_fully_shard.py"
    assert "_is_fsdp_managed_module" in source.read_text()
