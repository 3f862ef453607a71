"""An independent classifier that refined images are measured by; nothing is ever trained against it."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from latentloom.drifting.images import Images
from latentloom.errors import ConfigError
from latentloom.runs import track

#: The judge is a yardstick: figures compare only where all of these are the same, so they are not settings.
NUM_FEATURES = 64
NUM_EPOCHS = 25
BATCH_SIZE = 64
MAX_STEPS = 4000  # a large data set is seen fewer times
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
DROPOUT = 0.5
WIDTH = 32
SIDE = 16  # larger samples are brought down to about this by the stride of the first convolution
POOLED_SIDE = 4
UNIT_IMAGES = 4096  # of the training images, enough to measure the unit of the features
_SAMPLES_AT_ONCE = 512


class Judge(nn.Module):
    """A small convolutional classifier; its features are what enters its last layer.

    Convolution, ReLU, convolution, ReLU, pooling to 4 x 4 cells, 64 ReLU units, classes. The features are in units of
    the root of their mean variance over training images: FD and KID would otherwise depend on the width, the dropout
    and the length of the judge's own training (FD by 2 times, KID by 6 times between judges of digits that are right on
    98 % and 99 %).

    Args:
        shape: channels, height and width of a sample.
        num_classes: of the data.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        stride = max(1, max(height, width) // SIDE)
        self.body = nn.Sequential(
            nn.Conv2d(channels, WIDTH, 2 * stride + 1, stride, stride),
            nn.ReLU(),
            nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(POOLED_SIDE),
            nn.Flatten(),
            nn.Dropout(DROPOUT),
            nn.Linear(2 * WIDTH * POOLED_SIDE**2, NUM_FEATURES),
            nn.ReLU(),
        )
        self.drop = nn.Dropout(DROPOUT)
        self.head = nn.Linear(NUM_FEATURES, num_classes)
        self.unit: Tensor
        self.register_buffer("unit", torch.ones(()))

    def forward(self, samples: Float[Tensor, "N C H W"]) -> Float[Tensor, "N K"]:
        """Logits of the K classes."""
        return self.head(self.drop(self.body(samples)))

    @torch.no_grad()
    def features(self, samples: Float[Tensor, "N C H W"]) -> Float[Tensor, "N 64"]:
        """The activations before the last layer, whose variance over training images is 1 on average, in float32."""
        self.eval()
        device = self.head.weight.device
        parts = [self.body(part.to(device, torch.float32)) for part in samples.split(_SAMPLES_AT_ONCE)]
        return torch.cat(parts) / self.unit

    @torch.no_grad()
    def classify(self, samples: Float[Tensor, "N C H W"]) -> Int64[Tensor, "N"]:
        """The most likely class of each sample."""
        return self.read_class(self.features(samples))

    @torch.no_grad()
    def read_class(self, features: Float[Tensor, "N 64"]) -> Int64[Tensor, "N"]:
        """The most likely class of each sample that `features` were taken of."""
        return self.head(features * self.unit).argmax(dim=1)


def train_judge(images: Images, seed: int = 0, device: torch.device | str = "cpu") -> Judge:
    """A judge trained on real images for 25 epochs, or 4000 steps of 64 images where that is less.

    Equal images, seeds and machines give equal judges. The random state of the caller is left as it was.

    Args:
        images: the training images, never those that refined images are compared with.
        seed: of weights, order and dropout; not a seed of the refiner's.
        device: where the judge is trained and stays.

    Raises:
        ConfigError: no images, or fewer than two classes.
    """
    if not len(images) or len(images.class_names) < 2:
        raise ConfigError(
            f"{len(images)} images of {len(images.class_names)} classes; a judge needs images of two or more classes"
        )
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        judge = Judge(images.shape, len(images.class_names)).to(device).train()
        optimizer = torch.optim.AdamW(judge.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        num_steps = min(NUM_EPOCHS * -(-len(images) // BATCH_SIZE), MAX_STEPS)
        batches = _batches(len(images))
        for _ in track(num_steps, "judge"):
            indices = next(batches)
            samples = images.load(indices).to(device, torch.float32)
            loss = F.cross_entropy(judge(samples), images.labels[indices].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        some = torch.randperm(len(images))[:UNIT_IMAGES]
    activations = torch.cat([judge.features(images.load(rows)) for rows in some.split(_SAMPLES_AT_ONCE)])
    judge.unit.copy_(activations.var(dim=0, correction=0).mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny))
    return judge.eval().requires_grad_(False)


def _batches(num_images: int) -> Iterator[Int64[Tensor, "_"]]:
    """Indices of batches without end, each pass over the images in another order."""
    while True:
        yield from torch.randperm(num_images).split(BATCH_SIZE)
