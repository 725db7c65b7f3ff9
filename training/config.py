"""The settings of a run: the command line, the checkpoint and the manifest share this dataclass.

Each field is declared once, with its default, its `--help` text and its allowed values. This module
does not import torch, so `--help` is fast.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, Final, get_args, get_type_hints

from latentd.training import trackers
from latentd.training.errors import TrainingError

CONVOLUTIONAL: Final = ("resnet", "ladder")
"""The architectures for images. The others but gru flatten every row."""

MAX_TEXT_LENGTH: Final = 64
"""Bytes of a text and its end, unless --text-length says it. Longer rows cost more and learn
slowly, so they are a choice."""


def _field(default: Any, help: str, **allowed: Any) -> Any:
    """A field. allowed: choices, or bounds: min (inclusive), above and below (exclusive)."""
    return dataclasses.field(default=default, metadata={"help": help, **allowed})


@dataclass(frozen=True)
class Config:
    """The settings of a run. A value out of its bounds raises TrainingError that names the flag."""

    data: str = _field(
        "digits",
        "rows: digits, mnist-5k, idx:DIR, npz:FILE[:ARRAY], images:DIR, text:FILE, or table:FILE "
        "(CSV or Parquet)",
    )
    image_size: str | None = _field(None, "HEIGHTxWIDTH, pixels: resize images:DIR to this")
    color: str = _field(
        "auto",
        "of images:DIR: grey, rgb, or auto: rgb if any picture has color, otherwise grey",
        choices=("auto", "grey", "rgb"),
    )
    bad_images: str = _field(
        "fail",
        "files of images:DIR that cannot be used: fail, one report of all of them; or skip, "
        "train without them and list them",
        choices=("fail", "skip"),
    )
    text_length: int | None = _field(
        None,
        "of text:FILE: bytes of a row, the text's end included, so that texts have one byte less "
        f"at most [what the longest text needs, {MAX_TEXT_LENGTH} at most]",
        min=2,
        below=1025,
    )
    long_texts: str = _field(
        "fail",
        "texts of text:FILE that are longer: fail, and say how many there are; cut them after the "
        "last whole character that fits; or skip them",
        choices=("fail", "cut", "skip"),
    )
    keep_repeated: bool = _field(
        False,
        "keep the lines of text:FILE that repeat an earlier one. Without this flag they are left "
        "out, because test rows would repeat training rows",
    )
    missing: str = _field(
        "fail",
        "missing values of table:FILE and of npz: vectors: fail, and count them by column; mean: "
        "replace them by the column's mean in the training rows, of a category by the level that "
        "stands for values not seen in training",
        choices=("fail", "mean"),
    )
    ignore_columns: str | None = _field(
        None, "of table:FILE: names, separated by commas, of columns that are left out, such as ids"
    )
    categorical_columns: str | None = _field(
        None,
        "of table:FILE: names, separated by commas, of columns of numbers that are codes of "
        "categories. Text and booleans are categories anyway",
    )
    label_column: str | None = _field(
        None,
        "of table:FILE: the name of a column that the rows leave out; `evaluate` compares the "
        "latents with it",
    )
    augment_flip: bool = _field(
        False, "mirror half of the pictures, left to right, drawn again in each pass"
    )
    augment_crop: int = _field(
        0, "move pictures by up to this many pixels each way; edges are reflected", min=0
    )
    augment_color: float = _field(
        0.0,
        "change brightness, contrast and saturation of pictures, each by up to this fraction",
        min=0,
        below=1,
    )
    val_fraction: float = _field(
        0.1, "fraction of the training rows held out to choose best.pt", above=0, below=1
    )
    test_fraction: float = _field(
        0.1, "fraction of the rows held out, if the source has no test rows", above=0, below=1
    )
    model: str = _field(
        "vae", "vae, or ae: the same net, a point for a code, no KL", choices=("vae", "ae")
    )
    architecture: str = _field(
        "auto",
        "auto: resnet for images whose shorter side has 28 pixels or more, else mlp; resnet: "
        "residual convolutions; ladder: a resnet whose z enters the decoder at several levels; "
        "iwae: tanh layers as in Burda et al. (2016); gated: A(x) * sigmoid(B(x)) layers as in "
        "Tomczak and Welling (2018); gru: text, recurrent both ways, read byte by byte",
        choices=("auto", "mlp", "iwae", "gated", "resnet", "ladder", "gru"),
    )
    latents: str = _field(
        "flat",
        "flat: z is a vector; spatial: z is an image with --latent-size channels, whose height and "
        "width are those of x halved --depth times. It needs --architecture resnet or ladder, and "
        "encodes and decodes images of other sizes than the trained one too",
        choices=("flat", "spatial"),
    )
    latent_size: int = _field(
        16, "numbers in the latent vector z; spatial: channels of z", min=1, below=1 << 16
    )
    hidden_size: int | None = _field(
        None,
        "layer width [mlp 256, iwae 200, gated 300, gru 256]; resnet, ladder: channels at the "
        "coarsest level, half as many at each finer one [16 at the finest, but 256 at most at the "
        "coarsest]",
        min=1,
    )
    depth: int | None = _field(
        None,
        "hidden layers each way [2]; resnet, ladder: halvings of the image [until 4 to 7 pixels "
        "are left; spatial: 2]",
        min=1,
        below=65,
    )
    blocks: int = _field(
        1,
        "resnet, ladder: residual blocks at each level, each way; one fewer at the finest",
        min=1,
        below=65,
    )
    attention: bool = _field(
        False,
        "resnet, ladder: self-attention between the pixels of the coarsest level, each way",
    )
    stochastic_layers: int | None = _field(
        None,
        "ladder: levels of the decoder at which z enters, in equal parts, the coarsest first [2]",
        min=1,
        below=17,
    )
    linear_path: str = _field(
        "auto",
        "resnet, ladder: pca, encoder and decoder add the training rows' principal components, "
        "fixed, and learn the rest: the run starts from the best linear VAE (Tipping and Bishop, "
        "1999); none; auto: pca with flat latents and a likelihood of grey levels",
        choices=("auto", "pca", "none"),
    )
    token_dropout: float = _field(
        0.0,
        "gru: fraction of the bytes that the decoder does not see before it predicts the next, "
        "against collapse: it needs z for them (Bowman et al., 2016)",
        min=0,
        below=1,
    )
    encoder_from: str | None = _field(
        None,
        "a run of the same net, such as one of --model ae: its trained encoder is the start, with "
        "a fresh decoder, against collapse (Li et al., 2019)",
    )
    likelihood: str = _field(
        "auto",
        "p(x|z), independent for each pixel; discretized-logistic: of the 256 levels of a byte; "
        "categorical: of text, each byte given those before it; auto: categorical for text, else "
        "gaussian",
        choices=("auto", "gaussian", "bernoulli", "discretized-logistic", "categorical"),
    )
    std: str = _field(
        "auto",
        "gaussian: standard deviation learned for each pixel of each x, or one shared by all, "
        "which gives sharper pictures (Rybkin et al., 2021), or column: one for each column of a "
        "table; auto: shared for resnet and ladder, column for tables",
        choices=("auto", "pixel", "shared", "column"),
    )
    min_std: float | None = _field(
        None,
        "gaussian: least standard deviation, of x scaled to [0, 1] [0.2; shared: 0.002, half a "
        "byte], or of standardized columns [0.2; shared, column: 0.01]",
        above=0,
    )
    fixed_std: float | None = _field(
        None,
        "gaussian: this standard deviation for every pixel, instead of a learned one",
        above=0,
    )
    binarization: str = _field(
        "none",
        "bernoulli: none, grey pixels as they are (their cross-entropy is not a likelihood); "
        "dynamic, black or white redrawn in each pass with probability x; fixed, drawn once",
        choices=("none", "dynamic", "fixed"),
    )
    binarization_seed: int = _field(
        777, "fixed: decides the black and white pixels", min=0, below=1 << 63
    )
    beta: float = _field(1.0, "weight of the KL in what is trained; 1 is the ELBO", above=0)
    kl_warmup_epochs: float = _field(
        0.0, "epochs in which the KL's weight rises from 0 to beta, against collapse", min=0
    )
    kl_cycles: int = _field(
        0,
        "0, or let the KL's weight rise from 0 to beta this many times over the epochs, each time "
        "in the first half of the cycle (Fu et al., 2019)",
        min=0,
    )
    free_bits: float = _field(
        0.0,
        "nats that each latent may cost for nothing, in the batch's mean (Kingma et al., 2016)",
        min=0,
    )
    importance_samples: int = _field(
        1,
        "draws of z for each row; above 1 trains the importance-weighted bound (Burda et al., "
        "2016) instead of the ELBO",
        min=1,
    )
    epochs: int = _field(200, "passes over the training rows", min=1)
    batch_size: int = _field(128, "rows in a step, over all processes together", min=1)
    optimizer: str = _field(
        "adam",
        "adam; muon: matrices are moved by their gradients made orthogonal (Jordan et al., 2024), "
        "the rest by adam: dearer steps, and fewer",
        choices=("adam", "muon"),
    )
    learning_rate: float = _field(2e-3, "the step size, at its highest", above=0)
    lr_schedule: str = _field(
        "constant",
        "of the learning rate over the epochs; cosine: falls to 0; one-cycle: rises for 30% of "
        "them and falls to 0",
        choices=("constant", "cosine", "one-cycle"),
    )
    lr_warmup_epochs: float = _field(
        0.0, "epochs in which the learning rate rises from 0, whatever the schedule", min=0
    )
    ema_decay: float = _field(
        0.0,
        "0, or the decay by step of an average of the weights, such as 0.999; then the average is "
        "what is validated and exported",
        min=0,
        below=1,
    )
    clip_grad_norm: float = _field(
        200.0, "clip the L2 norm of the gradient, of nats per example, to this", above=0
    )
    validate_every: int = _field(1, "epochs from one validation to the next", min=1)
    patience: int = _field(
        0, "0, or stop after this many epochs without a better validation ELBO", min=0
    )
    checkpoint_seconds: float = _field(
        60.0, "write last.pt this often within an epoch, besides at the end of each", above=0
    )
    tracker: str = _field(
        "tensorboard",
        "where to follow the run, besides log.jsonl: tensorboard, files in OUT/tensorboard; "
        "mlflow, a database beside OUT or MLFLOW_TRACKING_URI (pip install 'latentd[mlflow]'); "
        "wandb, offline in OUT/wandb or as WANDB_MODE says (pip install 'latentd[wandb]'); none",
        choices=(*trackers.KINDS, trackers.NONE),
    )
    precision: str = _field(
        "auto",
        "of the nets' arithmetic in training; auto: bfloat16 where a GPU has it, else float32. "
        "Weights, losses and validation are float32 always",
        choices=("auto", "float32", "bfloat16"),
    )
    compile: bool = _field(
        False,
        "compile the nets and the bound with torch.compile, where there is a compiler: a minute "
        "at first, then shorter steps. On a GPU also replay steps from CUDA graphs, in which small "
        "nets do not wait for launches (one process, --optimizer adam)",
    )
    seed: int = _field(
        0, "decides the split, the weights, the order and every draw", min=0, below=1 << 63
    )
    device: str = _field(
        "auto",
        "auto: cuda if there, else cpu. A resumed run keeps its device unless one is given; on "
        "another kind of device its noise is reseeded",
        choices=("auto", "cpu", "cuda"),
    )

    threads: int = _field(
        0,
        "CPU threads of one operation; 0: OMP_NUM_THREADS where that is set, else a short "
        "measurement chooses them. Other numbers of threads round differently: the log names the "
        "one used, and a resumed run keeps it",
        min=0,
        below=1 << 10,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        if self.likelihood == "auto":  # data alone decides it, and everything needs it
            chosen = "categorical" if self.is_text else "gaussian"
            object.__setattr__(self, "likelihood", chosen)
        if self.image_size is not None:
            parse_size(self.image_size)
            if not self.data.startswith("images:"):
                raise TrainingError("--image-size resizes images:DIR only; leave it out.")
        for unwanted, sentence in (
            (
                self.binarization != "none" and self.likelihood != "bernoulli",
                f"--binarization {self.binarization} draws black or white pixels, which only "
                "--likelihood bernoulli describes; use that, or --binarization none.",
            ),
            (
                self.fixed_std is not None and self.likelihood != "gaussian",
                "--fixed-std is of --likelihood gaussian; leave it out.",
            ),
            (
                self.std != "auto" and self.likelihood != "gaussian",
                "--std is of --likelihood gaussian; leave it out.",
            ),
            (
                self.std == "shared" and self.fixed_std is not None,
                "--std shared learns the standard deviation that --fixed-std gives; leave out one.",
            ),
            (
                self.model == "ae" and self._changes_the_kl(),
                "--model ae has no KL and samples no z. Leave out --importance-samples, --beta, "
                "--kl-warmup-epochs, --kl-cycles and --free-bits.",
            ),
            (
                self.importance_samples > 1 and self._changes_the_kl(but="importance_samples"),
                "--importance-samples above 1 trains the importance-weighted bound, which has no "
                "KL term to weight. Leave out --beta, --kl-warmup-epochs, --kl-cycles and "
                "--free-bits.",
            ),
            (
                self.kl_warmup_epochs > 0 and self.kl_cycles > 0,
                "--kl-warmup-epochs raises the KL's weight once and --kl-cycles several times; "
                "choose one.",
            ),
            (
                self.latents == "spatial" and not self._may_be_convolutional,
                "--latents spatial needs --architecture resnet or ladder, not "
                f"{self.architecture}.",
            ),
            (
                (self.attention or self.blocks > 1) and not self._may_be_convolutional,
                "--attention and --blocks are of --architecture resnet and ladder, not "
                f"{self.architecture}; leave them out.",
            ),
            (
                (self.stochastic_layers or 1) > 1 and self.architecture != "ladder",
                "--stochastic-layers above 1 is of --architecture ladder; use that, or leave it "
                "out.",
            ),
            (
                self.linear_path == "pca"
                and not (self._may_be_convolutional and self.latents == "flat"),
                "--linear-path pca is of --architecture resnet or ladder with --latents flat; "
                "leave it out.",
            ),
            (
                not self.is_text
                and (self.text_length or self.long_texts != "fail" or self.keep_repeated),
                "--text-length, --long-texts and --keep-repeated are of --data text:FILE; leave "
                "them out.",
            ),
            (
                self.is_text and self.architecture not in ("auto", "gru"),
                f"--architecture {self.architecture} does not read text; use gru.",
            ),
            (
                not self.is_text and (self.architecture == "gru" or self.token_dropout > 0),
                "--architecture gru and --token-dropout are for --data text:FILE; leave them out.",
            ),
            (
                not self.is_table
                and bool(self.ignore_columns or self.categorical_columns or self.label_column),
                "--ignore-columns, --categorical-columns and --label-column are of --data "
                "table:FILE; leave them out.",
            ),
            (
                not self._may_have_columns and self.missing != "fail",
                "--missing is of --data table:FILE and npz:FILE; leave it out.",
            ),
            (
                self.is_table and self.architecture not in ("auto", "mlp", "iwae", "gated"),
                f"--architecture {self.architecture} does not read tables; use mlp, iwae or gated.",
            ),
            (
                self.is_table and self.likelihood != "gaussian",
                f"--likelihood {self.likelihood} is not one of tables: their numbers have a "
                "gaussian and their categories a categorical one; leave it out.",
            ),
            (
                self.std == "column" and not self._may_have_columns,
                "--std column is of --data table:FILE and npz:FILE; leave it out.",
            ),
            (
                self.is_text != (self.likelihood == "categorical"),
                "--likelihood categorical is that of --data text:FILE, and text has no other; "
                "leave --likelihood out.",
            ),
            (
                self.is_text and (self.depth or 1) > 1,
                "--architecture gru has one layer each way; leave --depth out.",
            ),
        ):
            if unwanted:
                raise TrainingError(sentence)

    @property
    def is_text(self) -> bool:
        """Whether rows are texts."""
        return self.data.startswith("text:")

    @property
    def is_table(self) -> bool:
        """Whether rows are those of a table."""
        return self.data.startswith("table:")

    @property
    def _may_have_columns(self) -> bool:
        """Whether rows may be in units of their own: an array shows it when it is read."""
        return self.data.startswith(("table:", "npz:"))

    @property
    def _may_be_convolutional(self) -> bool:
        return not (self.is_text or self.is_table) and self.architecture in ("auto", *CONVOLUTIONAL)

    @property
    def sizes(self) -> tuple[int, int]:
        """hidden_size and depth of a resolved config."""
        assert self.hidden_size is not None, "the config is not resolved"
        assert self.depth is not None, "the config is not resolved"
        return self.hidden_size, self.depth

    @property
    def layers(self) -> int:
        """The number of stochastic layers of a resolved config."""
        return self.stochastic_layers or 1

    @property
    def least_std(self) -> float:
        """The least standard deviation of a Gaussian likelihood."""
        # An own deviation for each pixel needs a higher floor: see likelihoods.Gaussian.
        return self.min_std or (0.002 if self.std == "shared" else 0.2)

    @property
    def least_column_std(self) -> float:
        """The least standard deviation of a column, in units of the column's own."""
        return self.min_std or (0.2 if self.std == "pixel" else 0.01)

    def _changes_the_kl(self, but: str = "") -> bool:
        names = {"importance_samples", "beta", "kl_warmup_epochs", "kl_cycles", "free_bits"} - {but}
        return any(
            getattr(self, f.name) != f.default for f in dataclasses.fields(self) if f.name in names
        )

    def with_data(self, source: str) -> Config:
        """The same settings for the rows of `source`, in --data's notation. Keeps --image-size only
        for pictures."""
        size = self.image_size if source.startswith("images:") else None
        kept = self if source.startswith("table:") else self._without_column_flags()
        return dataclasses.replace(kept, data=source, image_size=size)

    def _without_column_flags(self) -> Config:
        return dataclasses.replace(
            self, ignore_columns=None, categorical_columns=None, label_column=None
        )

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Config:
        """The inverse of dataclasses.asdict. Raises TrainingError for an unknown key or a wrong
        type, so a typo or a foreign checkpoint never results in a default."""
        unknown = sorted(set(raw) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise TrainingError(f"The configuration has unknown settings: {', '.join(unknown)}.")
        return cls(**raw)


def flag(name: str) -> str:
    """The command-line flag for a field."""
    return "--" + name.replace("_", "-")


def parse_size(text: str) -> tuple[int, int]:
    """'32x48' -> (32, 48): height and width in pixels."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not match:
        raise TrainingError(
            f"--image-size must be HEIGHTxWIDTH in pixels (height x width), such as 32x48; "
            f"got {text!r}."
        )
    return int(match[1]), int(match[2])


_HINTS: Final = get_type_hints(Config)


def value_type(field: dataclasses.Field[Any]) -> type:
    """The type of a field's value: bool, int, float or str."""
    hint = _HINTS[field.name]
    kind: type = next((arg for arg in get_args(hint) if arg is not type(None)), hint)
    return kind


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    if value is None and field.default is None:
        return
    kind, name = value_type(field), flag(field.name)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise TrainingError(f"{name} takes a value of type {kind.__name__}, not {value!r}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise TrainingError(f"{name} must be a finite number, not {value}.")
    rule = field.metadata
    if "min" in rule and value < rule["min"]:
        raise TrainingError(f"{name} must be at least {rule['min']}, not {value}.")
    if "above" in rule and value <= rule["above"]:
        raise TrainingError(f"{name} must be above {rule['above']}, not {value}.")
    if "below" in rule and value >= rule["below"]:
        raise TrainingError(f"{name} must be below {rule['below']}, not {value}.")
    if "choices" in rule and value not in rule["choices"]:
        raise TrainingError(f"{name} is one of {', '.join(rule['choices'])}, not {value!r}.")
