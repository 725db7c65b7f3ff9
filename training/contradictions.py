"""Settings of a run that exclude each other."""

from __future__ import annotations

import dataclasses

from latentd.training.settings import Settings


def contradiction(settings: Settings) -> str | None:
    """The first contradiction, as a sentence that names the flags and says what to do; or None.

    settings: each within its own bounds, and --likelihood resolved.
    """
    for is_wrong, sentence in (
        (
            settings.image_size is not None and not settings.data.startswith("images:"),
            "--image-size resizes images:DIR only; leave it out.",
        ),
        (
            settings.binarization != "none" and settings.likelihood != "bernoulli",
            f"--binarization {settings.binarization} draws black or white pixels, which only "
            "--likelihood bernoulli describes; use that, or --binarization none.",
        ),
        (
            settings.fixed_std is not None and settings.likelihood != "gaussian",
            "--fixed-std applies only to --likelihood gaussian; leave it out.",
        ),
        (
            settings.std != "auto" and settings.likelihood != "gaussian",
            "--std applies only to --likelihood gaussian; leave it out.",
        ),
        (
            settings.std == "shared" and settings.fixed_std is not None,
            "--std shared learns the standard deviation that --fixed-std gives; leave out one.",
        ),
        (
            settings.model == "ae" and _changes_the_kl(settings),
            "--model ae has no KL and samples no z. Leave out --importance-samples, --beta, "
            "--kl-warmup-epochs, --kl-cycles and --free-bits.",
        ),
        (
            settings.importance_samples > 1 and _changes_the_kl(settings, but="importance_samples"),
            "--importance-samples above 1 trains the importance-weighted bound, which has no "
            "KL term to weight. Leave out --beta, --kl-warmup-epochs, --kl-cycles and "
            "--free-bits.",
        ),
        (
            settings.kl_warmup_epochs > 0 and settings.kl_cycles > 0,
            "--kl-warmup-epochs raises the KL's weight once and --kl-cycles several times; "
            "choose one.",
        ),
        (
            settings.latents == "spatial" and not settings.may_be_convolutional,
            "--latents spatial needs --architecture resnet or ladder, not "
            f"{settings.architecture}.",
        ),
        (
            (settings.attention or settings.blocks > 1) and not settings.may_be_convolutional,
            "--attention and --blocks apply only to --architecture resnet and ladder, not to "
            f"{settings.architecture}; leave them out.",
        ),
        (
            (settings.stochastic_layers or 1) > 1 and settings.architecture != "ladder",
            "--stochastic-layers above 1 applies only to --architecture ladder; use that, or leave "
            "it out.",
        ),
        (
            settings.linear_path == "pca"
            and not (settings.may_be_convolutional and settings.latents == "flat"),
            "--linear-path pca applies only to --architecture resnet or ladder with --latents "
            "flat; leave it out.",
        ),
        (
            not settings.is_text
            and (settings.text_length or settings.long_texts != "fail" or settings.keep_repeated),
            "--text-length, --long-texts and --keep-repeated apply only to --data text:FILE; leave "
            "them out.",
        ),
        (
            settings.is_text and settings.architecture not in ("auto", "gru"),
            f"--architecture {settings.architecture} does not read text; use gru.",
        ),
        (
            not settings.is_text and (settings.architecture == "gru" or settings.token_dropout > 0),
            "--architecture gru and --token-dropout apply only to --data text:FILE; leave them "
            "out.",
        ),
        (
            not settings.is_table
            and (settings.ignore_columns or settings.categorical_columns or settings.label_column),
            "--ignore-columns, --categorical-columns and --label-column apply only to "
            "--data table:FILE; leave them out.",
        ),
        (
            not settings.may_have_columns and settings.missing != "fail",
            "--missing applies only to --data table:FILE and npz:FILE; leave it out.",
        ),
        (
            settings.is_table and settings.architecture not in ("auto", "mlp", "iwae", "gated"),
            f"--architecture {settings.architecture} does not read tables; use mlp, iwae or gated.",
        ),
        (
            settings.is_table and settings.likelihood != "gaussian",
            f"--likelihood {settings.likelihood} does not apply to tables: numeric columns have a "
            "gaussian and categorical ones a categorical one; leave it out.",
        ),
        (
            settings.std == "column" and not settings.may_have_columns,
            "--std column applies only to --data table:FILE and npz:FILE; leave it out.",
        ),
        (
            settings.is_text != (settings.likelihood == "categorical"),
            "--likelihood categorical applies only to --data text:FILE, and text has no other; "
            "leave --likelihood out.",
        ),
        (
            settings.is_text and (settings.depth or 1) > 1,
            "--architecture gru has one layer each way; leave --depth out.",
        ),
    ):
        if is_wrong:
            return sentence
    return None


def _changes_the_kl(settings: Settings, but: str = "") -> bool:
    """Whether a setting of the objective, other than `but`, differs from its default."""
    names = {"importance_samples", "beta", "kl_warmup_epochs", "kl_cycles", "free_bits"} - {but}
    return any(
        getattr(settings, field.name) != field.default
        for field in dataclasses.fields(settings)
        if field.name in names
    )
