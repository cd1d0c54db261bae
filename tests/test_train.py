"""Training: schedules, reproducible bits, checkpoints, and what stops it."""

import json
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anndata import AnnData
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy import sparse

from ldvae.backends import unsupported
from ldvae.backends.plain import PlainBackend
from ldvae.config import FitConfig, ModelConfig, TrainConfig, default_max_epochs
from ldvae.data import Counts, DataShape, Split, library_prior, read_counts, register, registered, split_cells
from ldvae.errors import InputError
from ldvae.likelihoods import LIKELIHOODS, Likelihood, Moments
from ldvae.module import LDVAE
from ldvae.train import (
    Checkpoint,
    Fit,
    Interrupted,
    fit,
    generators,
    kl_weight,
    mean_profile,
    seeded,
    told_of_compiling,
)


@pytest.fixture(scope="module")
def counts() -> Counts:
    random = np.random.default_rng(0)
    adata = AnnData(sparse.csr_matrix(random.poisson(0.5 + random.gamma(1, 1, (150, 1)), (150, 30)).astype(np.float32)))
    register(adata)
    return read_counts(adata, registered(adata))


SPLIT = split_cells(150, 0.7, 0.2)
CONFIG = FitConfig(max_epochs=4, batch_size=32, lr=5e-3, n_epochs_kl_warmup=2, schedule="cosine")


def make(counts: Counts, **options) -> LDVAE:
    with seeded(0):
        return LDVAE(ModelConfig(n_hidden=8, n_latent=3, **options), DataShape(30), *library_prior(counts, 1))


def run(counts: Counts, config: FitConfig = CONFIG, split: Split = SPLIT, **options) -> tuple[LDVAE, Fit]:
    module = make(counts)
    return module, fit(module, counts, split, config, **{"seed": 1} | options)


def assert_same_bits(first: LDVAE, second: LDVAE) -> None:
    for (name, mine), theirs in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_same_seed_gives_the_same_bits_and_leaves_the_callers_random_state(counts):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 (it is the caller's legacy state that must be left alone)
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, done = run(counts)
    second, _ = run(counts)
    other, _ = run(counts, seed=2)
    assert_same_bits(first, second)
    assert not torch.equal(first.decoder.weight, other.decoder.weight)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002
    assert not first.training
    assert done.epochs == 4


def test_random_streams_of_an_epoch_are_the_same_with_every_numpy():
    order, noise = generators(0, 0)
    assert noise.initial_seed() == 2440950710608614359
    assert order.integers(1 << 62) == 4348531928880111035


def test_beta2_of_adam_is_the_same_in_compiled_and_plain_training(counts):
    config = replace(CONFIG, beta2=0.9)
    compiled, _ = run(counts, config)
    plain, _ = run(counts, config, make_backend=PlainBackend)
    usual, _ = run(counts)
    assert torch.allclose(compiled.decoder.weight, plain.decoder.weight, atol=2e-4)
    assert not torch.allclose(compiled.decoder.weight, usual.decoder.weight, atol=2e-3)


def test_training_lowers_the_loss_and_writes_the_references_history(counts):
    _, done = run(counts, FitConfig(max_epochs=30, batch_size=32, lr=1e-2, n_epochs_kl_warmup=None))
    history = done.history
    assert history["elbo_train"].iloc[-1] < history["elbo_train"].iloc[0] - 1
    for part, loss in (("train", "train_loss"), ("validation", "validation_loss")):
        parts = history[f"reconstruction_loss_{part}"] + history[f"kl_local_{part}"]
        np.testing.assert_allclose(parts, history[f"elbo_{part}"])
        np.testing.assert_allclose(history[loss], history[f"elbo_{part}"])  # no warm-up: the weight is 1
    assert history.index.name == "epoch"
    assert (history["kl_weight"] == 1).all()


def test_kl_weight_rises_by_epochs_or_steps_and_then_stays():
    by_epoch = FitConfig(n_epochs_kl_warmup=4, n_steps_kl_warmup=2, max_kl_weight=0.8)
    assert [kl_weight(by_epoch, epoch, 0) for epoch in (0, 1, 4, 9)] == pytest.approx([0, 0.2, 0.8, 0.8])
    by_step = FitConfig(n_epochs_kl_warmup=None, n_steps_kl_warmup=10, min_kl_weight=0.5)
    assert [kl_weight(by_step, 0, step) for step in (0, 5, 20)] == pytest.approx([0.5, 0.75, 1])
    with pytest.raises(InputError, match="min_kl_weight"):
        kl_weight(FitConfig(min_kl_weight=2), 0, 0)


def test_cosine_ends_at_zero_and_plateau_lowers_the_rate(counts):
    assert run(counts)[1].history["lr"].iloc[[0, 2]].tolist() == pytest.approx([5e-3, 2.5e-3])
    config = FitConfig(max_epochs=8, batch_size=32, lr=0.5, schedule="plateau", lr_patience=0, lr_factor=0.5)
    rates = run(counts, config)[1].history["lr"]
    assert rates.iloc[-1] < rates.iloc[0]
    assert set(np.log2(0.5 / rates)) <= set(range(8))


def test_early_stopping_waits_for_its_patience_after_the_warm_up(counts):
    config = FitConfig(
        max_epochs=60,
        batch_size=32,
        early_stopping=True,
        early_stopping_patience=3,
        early_stopping_warmup_epochs=5,
        early_stopping_min_delta=1e9,  # nothing counts as an improvement after the first look
    )
    done = run(counts, config)[1]
    assert done.stopped_early
    assert done.epochs == 5 + 1 + 3


@pytest.mark.parametrize("n_train", [33, 20, 2])
def test_a_last_minibatch_of_one_cell_and_less_than_a_minibatch_train(counts, n_train):
    split = Split(np.arange(n_train), np.arange(n_train, 60), np.arange(60, 150))
    module, _ = run(counts, split=split)
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_without_validation_cells_there_is_no_validation_and_no_early_stopping(counts):
    split = Split(np.arange(150), np.arange(0), np.arange(0))
    assert "elbo_validation" not in run(counts, split=split)[1].history
    with pytest.raises(InputError, match="no validation set"):
        run(counts, FitConfig(early_stopping=True), split)
    with pytest.raises(InputError, match="no cell to train on"):
        run(counts, split=Split(np.arange(0), np.arange(150), np.arange(0)))


def test_a_loss_that_is_no_number_says_where_and_why(counts):
    with pytest.raises(InputError, match=r"NaN or infinite in epoch \d+, step \d+.*learning rate") as error:
        run(counts, FitConfig(max_epochs=20, batch_size=32, lr=1e30))
    assert "Lower lr" in str(error.value)


def interrupt_after(n_steps: int):
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > n_steps

    return stop


@pytest.mark.parametrize("n_steps", [0, 1, 4, 6, 11, 15])
def test_resumed_training_ends_in_the_bits_of_an_undisturbed_one(counts, tmp_path, n_steps):
    undisturbed, whole = run(counts)
    checkpoint = Checkpoint(tmp_path / "training.safetensors")
    with pytest.raises(Interrupted):
        run(counts, checkpoint=checkpoint, stop=interrupt_after(n_steps))
    resumed, done = run(counts, checkpoint=checkpoint)
    assert_same_bits(undisturbed, resumed)
    assert done.history.equals(whole.history)


def test_checkpoints_come_at_the_interval_and_every_one_can_be_resumed(counts, tmp_path):
    undisturbed, _ = run(counts)
    checkpoint = Checkpoint(tmp_path / "training.safetensors", every_s=0)
    copies = []
    run(counts, checkpoint=checkpoint, on_epoch=lambda _: copies.append(checkpoint.path.read_bytes()))
    assert len(copies) == 4
    for copy in copies:
        checkpoint.path.write_bytes(copy)
        assert_same_bits(undisturbed, run(counts, checkpoint=checkpoint)[0])


def torn(path):
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-50] ^= 0xFF
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def newer(path):
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["ldvae"])
    save_file(load_file(path), path, metadata={"ldvae": json.dumps(header | {"format": 99})})


@pytest.mark.parametrize(
    ("damage", "options", "why"),
    [
        (torn, {}, "Cannot resume"),
        (flipped, {}, "checksum"),
        (empty, {}, "Cannot resume"),
        (newer, {}, "format 99"),
        (lambda path: None, {"seed": 9}, "another seed"),
        (lambda path: None, {"config": FitConfig(max_epochs=4, batch_size=16)}, "other parameters"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_set_aside_and_training_starts_over(
    counts, tmp_path, caplog, damage, options, why
):
    checkpoint = Checkpoint(tmp_path / "training.safetensors")
    with pytest.raises(Interrupted):
        run(counts, checkpoint=checkpoint, stop=interrupt_after(6))
    damage(checkpoint.path)
    assert_same_bits(run(counts, **options)[0], run(counts, checkpoint=checkpoint, **options)[0])
    assert why in caplog.text
    assert list(tmp_path.glob("*.refused-*"))


def test_a_checkpoint_that_cannot_be_written_does_not_stop_the_training(counts, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    _, done = run(counts, checkpoint=Checkpoint(tmp_path / "file" / "checkpoint", every_s=0))
    assert done.epochs == 4
    assert "Could not write the checkpoint" in caplog.text


def test_ctrl_c_keeps_what_was_learnt(counts):
    def press(report) -> None:
        if report.epoch == 2:
            raise KeyboardInterrupt

    module, done = run(counts, on_epoch=press)
    assert done.interrupted
    assert (done.epochs, len(done.history)) == (2, 2)
    assert_same_bits(module, run(counts, on_epoch=press)[0])


def test_progress_reports_epochs_rate_and_time_left(counts):
    reports = []
    start = time.monotonic()
    run(counts, on_epoch=reports.append)
    assert [report.epoch for report in reports] == [1, 2, 3, 4]
    assert reports[-1].seconds_left == 0
    assert reports[0].cells_per_s > 105 / (time.monotonic() - start)


def test_a_training_that_waits_for_another_to_compile_does_not_say_that_it_compiles(monkeypatch, caplog):
    monkeypatch.setattr("ldvae.train.COMPILING_IS_TOLD_AFTER_S", 0.05)
    monkeypatch.setattr("ldvae.train.WAITING", waiting := threading.Event())
    waiting.set()
    with caplog.at_level("INFO", "ldvae.train"), told_of_compiling():
        time.sleep(0.2)
        assert not caplog.text
        waiting.clear()  # it gave up waiting
        time.sleep(0.2)
    assert caplog.text.count("compiles its code") == 1


def test_a_first_step_that_takes_long_is_told_and_left_out_of_the_rate(counts, monkeypatch, caplog):
    train, told, seconds = PlainBackend.train, [], []
    monkeypatch.setattr("ldvae.train.COMPILING_IS_TOLD_AFTER_S", 0.1)
    monkeypatch.setattr("ldvae.train.time", SimpleNamespace(monotonic=lambda: sum(seconds)))  # only steps take time

    def slow_at_first(self, *arguments):
        time.sleep(0 if seconds else 1)
        seconds.append(1 if seconds else 60)
        return train(self, *arguments)

    monkeypatch.setattr(PlainBackend, "train", slow_at_first)
    with caplog.at_level("INFO", "ldvae.train"):
        _, fit = run(counts, on_epoch=told.append, make_backend=PlainBackend)
    assert caplog.text.count("compiles its code") == 1
    assert fit.seconds == 59 + len(seconds)
    assert told[0].cells_per_s == CONFIG.batch_size  # a minibatch in a second
    assert fit.cells_per_s == pytest.approx(fit.epochs * 105 / len(seconds))


@pytest.mark.parametrize(
    ("n_obs", "epochs"), [(100, 400), (20_000, 400), (30_000, 267), (100_000, 80), (1_000_000, 8), (16_000_000, 1)]
)
def test_default_number_of_epochs_is_the_references(n_obs, epochs):
    assert default_max_epochs(n_obs) == epochs


def test_workflow_options_become_a_schedule_that_fits_the_number_of_epochs():
    config = TrainConfig(kl_warmup=0.25).fit_config(40_000)
    assert (config.max_epochs, config.n_epochs_kl_warmup, config.early_stopping_warmup_epochs) == (80, 20, 20)
    assert [TrainConfig().fit_config(n_obs).max_epochs for n_obs in (100, 600, 1600, 20_000)] == [400, 400, 160, 160]


@pytest.mark.parametrize("options", [{}, {"use_batch_norm": False, "bias": True}])
def test_a_decoder_can_start_at_the_mean_profile(counts, options):
    module = make(counts, **options)
    profile = mean_profile(counts, SPLIT.train, block=40)
    total = counts.x[SPLIT.train].toarray().sum(axis=0) + 1.0
    np.testing.assert_allclose(profile, total / total.sum(), rtol=1e-6)
    module.decoder.start_at(profile)
    np.testing.assert_allclose(module.decoder.folded()[1].softmax(0).detach(), profile, rtol=1e-5)


def test_without_an_intercept_there_is_nothing_to_start(counts):
    module = make(counts, use_batch_norm=False)
    before = {name: values.clone() for name, values in module.state_dict().items()}
    module.decoder.start_at(mean_profile(counts, SPLIT.train))
    assert all(torch.equal(values, before[name]) for name, values in module.state_dict().items())


def test_only_an_untrained_decoder_starts_at_the_mean_profile(counts):
    config = FitConfig(max_epochs=1, batch_size=32, lr=1e-9, weight_decay=0, start_at_mean=True)
    module, _ = run(counts, config)
    np.testing.assert_allclose(
        module.decoder.norm.bias.detach().softmax(0), mean_profile(counts, SPLIT.train), rtol=1e-4
    )
    with torch.no_grad():
        module.decoder.norm.bias.zero_()
    fit(module, counts, SPLIT, config)  # goes on from where it was
    assert module.decoder.norm.bias.abs().max() < 1e-6


class Geometric(Likelihood):
    """Variance mu + mu²: a likelihood that no kernel knows."""

    name = "geometric"
    sentence = "a geometric likelihood"

    def log_prob(self, x, px):
        return x * (px.px_rate + 1e-8).log() - (x + 1) * (1 + px.px_rate).log()

    def moments(self, px):
        return Moments(px.px_rate, px.px_rate + 2 * px.px_rate**2, 1 / (1 + px.px_rate))

    def sample(self, px, rng):
        return (rng.geometric(1 / (1 + px.px_rate.numpy())) - 1).astype(np.float32)


def test_a_new_likelihood_is_one_class_and_trains_in_plain_torch(counts, monkeypatch, caplog):
    monkeypatch.setitem(LIKELIHOODS, "geometric", Geometric())
    config = ModelConfig(n_hidden=8, n_latent=3).model_copy(update={"gene_likelihood": "geometric"})
    module = LDVAE(config, DataShape(30), *library_prior(counts, 1))
    assert "not 'geometric'" in unsupported(module)
    with caplog.at_level("INFO"):
        history = fit(module, counts, SPLIT, FitConfig(max_epochs=30, batch_size=32, lr=1e-2), seed=0).history
    assert "Plain torch: the compiled step has the likelihoods poisson, nb, zinb, not 'geometric'." in caplog.text
    assert history["elbo_train"].iloc[-1] < history["elbo_train"].iloc[0] - 1
