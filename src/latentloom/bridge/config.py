"""The bridge's settings, in the document's sections and by its keys; without a file they are the embedded default's."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from latentloom.runs import Config

Count = Annotated[int, Field(ge=1)]
Number = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Task = Literal["t2l", "l2t", "joint"]

SMOLLM2 = "smollm2"
MINILM = "minilm"


class LoraConfig(Config):
    """An adapter on the frozen backbone's linear layers; off at rank 0. In `t2l` it is only used with `encode`.

    Args:
        rank: of the update; 0 adds none.
        alpha: the update is scaled by alpha / rank.
        dropout: on the adapter's input.
        targets: names of the layers it is put on.
        encode: whether text -> vector reads through the adapter too. Its features then change with every step, and
            cannot be cached; otherwise they are those of the untouched backbone.
    """

    rank: Number = 8
    alpha: Count = 16
    dropout: Share = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    encode: bool = False


class ModelConfig(Config):
    """The backbone and the two parts that join it to sentence vectors.

    Args:
        pretrained_model_name_or_path: `smollm2`, the embedded default; a folder or a GGUF file; or a name on the
            Hugging Face hub, whose files `latentloom bridge fetch` has put in place.
        pretrained_local_dir: where `fetch` puts them; the hub's own cache when None.
        revision: commit, branch or tag on the hub.
        trust_remote_code: run Python code that comes with the weights; needs a pinned `revision` (a commit).
        latent_dim: channels of a sentence vector; None takes the data's.
        max_seq_len: tokens of a text; what is longer is cut.
        freeze_backbone: train only the two parts (and the adapter).
        freeze_lm_head: keep the output layer; where the input embeddings are tied to it, them too.
        unfreeze_layers: last layers of a frozen backbone that are trained all the same, with the final norm.
        num_prefix_tokens: embeddings that a vector becomes.
        prefix_hidden: width of the projection's hidden layer; None is three times the vector's.
        attention_sink: put the tokenizer's first token before the prefix and before texts that are encoded.
        unconditional_share: share of training vectors replaced by the mean vector, so that the model also knows texts
            without a vector: the baseline of every score.
        encoder_layers: layers whose states are pooled for text -> vector; None takes six from the first to the last.
        encoder_hidden: width of the head's hidden layer.
        encoder_dropout: on the head's input and hidden layer.
    """

    pretrained_model_name_or_path: str = SMOLLM2
    pretrained_local_dir: Path | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    latent_dim: Count | None = None
    max_seq_len: Count = 1024
    freeze_backbone: bool = True
    freeze_lm_head: bool = True
    unfreeze_layers: Number = 0
    num_prefix_tokens: Count = 4
    prefix_hidden: Count | None = None
    attention_sink: bool = True
    unconditional_share: Share = 0.05
    encoder_layers: tuple[Count, ...] | None = None
    encoder_hidden: Count = 1024
    encoder_dropout: Share = 0.2
    lora: LoraConfig = LoraConfig()

    @model_validator(mode="after")
    def _agrees(self) -> "ModelConfig":
        if self.unfreeze_layers and not self.freeze_backbone:
            raise ValueError("unfreeze_layers has no effect with freeze_backbone = false; leave one of them out")
        if self.lora.rank and not self.freeze_backbone:
            raise ValueError("freeze_backbone = false trains the weights themselves; set lora.rank = 0 beside it")
        return self


class DataConfig(Config):
    """Which texts and vectors, and which of them are held out.

    Args:
        data_root: folder that the other paths are relative to.
        train_json: pairs of texts and vectors: a JSON list as in the document, JSONL, safetensors shards or webdataset
            shards (names with braces).
        val_json: held-out pairs; None keeps `held_out` of the training pairs from training.
        texts: a text file (one a line) or JSONL, in place of `train_json`: its vectors are made here.
        text_field: the field of a JSONL line that holds the text.
        encoder: makes those vectors: `minilm`, the embedded one, or the folder of a sentence-transformers model.
        num_texts: texts taken of the file at most, drawn by the seed; None takes all.
        held_out: pairs kept from training, drawn by the seed, when there is no `val_json`.
        max_bad_share: share of bad rows above which a set of pairs is refused.
    """

    data_root: Path = Path()
    train_json: str | None = None
    val_json: str | None = None
    texts: Path | None = None
    text_field: str = "text"
    encoder: str = MINILM
    num_texts: Count | None = None
    held_out: Count = 400
    max_bad_share: Share = 0.01

    @model_validator(mode="after")
    def _has_one_source(self) -> "DataConfig":
        if self.train_json is not None and self.texts is not None:
            raise ValueError("train_json and texts are both given; give the pairs or the texts")
        return self


class TrainingConfig(Config):
    """What is trained and how.

    Args:
        task: `t2l` text -> vector, `l2t` vector -> text, `joint` both.
        init_from: an export, or a run's folder, whose weights the training starts from, on the same backbone; None
            starts anew.
        text_loss_weight, latent_loss_weight: of the two losses in `joint`.
        train_batch_size: pairs per step and process.
        t2l_batch_size: pairs per step and process of text -> vector where its features are cached, which makes a step
            cheap; None is train_batch_size.
        gradient_accumulation_steps: batches that make one optimizer step.
        num_steps: optimizer steps.
        lr: peak rate of the vector -> text side and of unfrozen weights.
        t2l_lr: of the text -> vector head; None is lr.
        lora_lr: of the adapter; None is lr.
        warmup_steps, schedule: the rate rises, then falls by half a cosine or stays.
        weight_decay: decoupled, of matrices alone.
        max_grad_norm: each side's gradients are clipped to it; 0 leaves them.
        dtype: of the frozen weights and of autocast; trained parts stay in float32.
        cache_features: in `t2l` and `joint` with features that never change, pool them once.
        parallel: under torchrun, `ddp` replicates the model, `fsdp` shards it.
        seed: of weights, batches and the held-out draw.
        device: cpu, cuda or cuda:N; the best there is when None.
    """

    task: Task = "joint"
    init_from: Path | None = None
    text_loss_weight: NotNegative = 1.0
    latent_loss_weight: NotNegative = 1.0
    train_batch_size: Count = 16
    t2l_batch_size: Count | None = 256
    gradient_accumulation_steps: Count = 1
    num_steps: Count = 320
    lr: Positive = 3e-3
    t2l_lr: Positive | None = 1e-3
    lora_lr: Positive | None = None
    warmup_steps: Number = 30
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: NotNegative = 0.01
    max_grad_norm: NotNegative = 1.0
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    cache_features: bool = True
    parallel: Literal["ddp", "fsdp"] = "ddp"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: str | None = None


class LoggingConfig(Config):
    """Where a run lies and how often it writes; TensorBoard is always written.

    Args:
        save_dir, run_name: the run's folder is `save_dir/run_name`; an interrupted run there goes on.
        log_every: steps between lines of the curve.
        save_every: steps between states that a run can go on from, and exports.
        wandb: also log to Weights & Biases, which takes its own settings from the WANDB_* variables.
    """

    save_dir: Path = Path("runs/bridge")
    run_name: str = "smollm2-minilm"
    log_every: Count = 10
    save_every: Count = 100
    wandb: bool = False


class EvaluationConfig(Config):
    """What a run measures on held-out pairs at its end.

    Args:
        num_pairs: held-out pairs that are scored at most.
        best_of: texts drawn per vector, of which the one whose own vector is nearest is kept; 1 draws none.
        temperature, top_p: of those draws.
        max_new_tokens: longest text decoded.
        encoder: makes vectors of decoded texts; None is `data.encoder`.
    """

    num_pairs: Number = 160
    best_of: Count = 8
    temperature: Positive = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    max_new_tokens: Count = 40
    encoder: str | None = None


class BridgeConfig(Config):
    """Settings of `latentloom bridge train`."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    logging: LoggingConfig = LoggingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _agrees(self) -> "BridgeConfig":
        if self.training.task == "t2l" and not self.model.freeze_lm_head:
            raise ValueError("model.freeze_lm_head = false has no effect with training.task = 't2l'; leave it out")
        return self
