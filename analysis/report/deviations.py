"""Where the paper and its released code disagree, and what this suite does: data only."""

from typing import NamedTuple


class Deviation(NamedTuple):
    """Something that the paper and its released code say differently."""

    what: str
    paper: str
    code: str
    """What the released code does."""
    here: str
    """What this suite does by default, and what makes it do otherwise."""
    claims: tuple[str, ...] = ()
    """Ids of the claims that it bears on."""


DEVIATIONS = (
    Deviation(
        "KL divergence (Eq. 6)",
        "part of the objective",
        "computed and then left out of the loss that the module returns, on MNIST and on ImageNet; its arguments are "
        "swapped, and it is taken over the channels of the discriminator's last activation at temperature 8",
        "added, teacher first, between outputs (--loss.kl, --loss.kl-on, --loss.kl-direction); the module's own term, "
        "added to the loss, is a case of kl_convergence",
        ("kl_better", "kl_faster", "d2_images", "d2_masks"),
    ),
    Deviation(
        "noise of a teacher image",
        "teacher and student get the same input",
        "each mechanism was drawn with noise of its own, and the mask's alone was stored: texture and background "
        "students learn from noise that has nothing to do with their target; the first of 42 columns and the first "
        "row are lost in reading, and rows are looked up with another number of images per class than was written",
        "a record keeps noise, label and image together (--distill.published-code draws as the scripts did)",
        ("random_noise", "capacity"),
    ),
    Deviation(
        "targets",
        "the teacher's outputs",
        "32x32 outputs upsampled to 64x64, stretched image by image to the full range, saved as JPEG",
        "the outputs themselves (--distill.published-code for the other)",
        ("capacity",),
    ),
    Deviation(
        "task of Table 1",
        "the caption: tell CGN images from real ones",
        "the ten-way digit classifier, trained on counterfactuals, tested on double-colored MNIST",
        "the ten-way task is the table, the two-way one stands beside it",
        ("table1_noise", "table1_rotation", "table1_transparency"),
    ),
    Deviation(
        "labels of Table 1's images",
        "texture and background of labels drawn independently",
        "the generator script samples one image at a time, and permutes the labels of a batch of one: texture and "
        "background keep the digit's own label, which color then gives away",
        "independent labels; unpermuted ones are a case of table1_shape_im",
        ("table1_noise", "table1_rotation", "table1_transparency"),
    ),
    Deviation(
        "when Table 1's masks are modified",
        "while modified CGNs are trained; whether also when they draw the classifier's images is not said",
        "while a CGN is trained from scratch; no released script modifies them when images are sampled",
        "both, and each alone (--when training, sampling or both)",
        ("table1_noise", "table1_rotation", "table1_transparency", "transparency_better"),
    ),
    Deviation(
        "rotation of Table 1",
        "rotation alone",
        "one angle for a whole batch; the factor 0.75 of the transparency run stays active as well",
        "rotation alone, one angle per image; with the factor it is a case of table1_shape_im; one angle for a "
        "batch is not replicated",
        ("table1_rotation",),
    ),
    Deviation(
        "benefit of transparency",
        "Sec. 4.4: better than the CGN's own masks; Table 1: 58.86 %, where the CGN paper has 89.0 %",
        "nothing that settles it",
        "a curve over transparency from 0.25 to 1",
        ("transparency_better",),
    ),
    Deviation(
        "discriminator loss (Eq. 4)",
        "a minus sign before both hinges, the same for real and fake, which rewards errors",
        "the standard hinge",
        "the standard hinge",
    ),
    Deviation(
        "cross entropy (Fig. 12)",
        "for generator and discriminator",
        "targets and predictions are exchanged, and raw scores are passed as probabilities",
        "binary cross entropy on the discriminator's scores, target 1 for the student, 0 for fakes",
        ("cross_entropy",),
    ),
    Deviation(
        "SSIM loss",
        "not mentioned",
        "wraps the student's image so that no gradient reaches the generator",
        "SSIM is a metric only",
    ),
    Deviation(
        "held-out pairs",
        "a test set",
        "a random split, seeded, of an unsorted directory listing: a different split on another file system",
        "separate noise streams for training and held-out sets; sorted listings",
    ),
    Deviation(
        "the student's label",
        "noise z and label y",
        "the teacher's own label embedding beside z",
        "a one-hot label instead: a student of a black box does not see the embedding",
    ),
)
"""Where paper and released code disagree, or the code does not do what it says; all of it was seen in, or shown by
running, the released code."""
