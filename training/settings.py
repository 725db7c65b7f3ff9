"""The settings of a run: fields with their defaults, `--help` texts and allowed values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

from latentd.training import trackers

CONVOLUTIONAL: Final = ("resnet", "ladder")
"""The architectures for images. The others but gru flatten every row."""

MAX_TEXT_LENGTH: Final = 64
"""Bytes of a text and its end, unless --text-length says it. Longer rows cost more and learn
slowly, so they are a choice."""


def _field(default: Any, help: str, **allowed: Any) -> Any:
    """A field. allowed: choices, or bounds: min (inclusive), above and below (exclusive)."""
    return dataclasses.field(default=default, metadata={"help": help, **allowed})


@dataclass(frozen=True)
class Settings:
    """The settings of a run, unchecked: see `config.Config`, which checks them."""

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
        "replace them by the column's mean in the training rows, of a categorical column by the "
        "level that stands for values not seen in training",
        choices=("fail", "mean"),
    )
    ignore_columns: str | None = _field(
        None, "of table:FILE: names, separated by commas, of columns that are left out, such as ids"
    )
    categorical_columns: str | None = _field(
        None,
        "of table:FILE: names, separated by commas, of columns of numbers that are codes. Text "
        "and booleans are categorical anyway",
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

    @property
    def is_text(self) -> bool:
        """Whether rows are texts."""
        return self.data.startswith("text:")

    @property
    def is_table(self) -> bool:
        """Whether rows are those of a table."""
        return self.data.startswith("table:")

    @property
    def may_have_columns(self) -> bool:
        """Whether rows may be in units of their own: an array shows it when it is read."""
        return self.data.startswith(("table:", "npz:"))

    @property
    def may_be_convolutional(self) -> bool:
        """Whether the architecture is one for images, or may become one when rows are read."""
        return not (self.is_text or self.is_table) and self.architecture in ("auto", *CONVOLUTIONAL)
