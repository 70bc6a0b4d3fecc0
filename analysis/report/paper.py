"""What the paper claims, in our words, and what would confirm or refute it: data only.

`analysis.report.verdicts` compares every claim with the run store.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """One claim of the paper and what decides it."""

    id: str
    section: str
    """Where the paper makes it, with the figure or table that it shows for it."""
    statement: str
    confirms: str
    """What would confirm it, in numbers."""
    refutes: str
    """What would refute it."""
    experiments: tuple[str, ...]
    """The experiments whose runs decide it: stems of scripts; none where no experiment here can."""
    figures: tuple[str, ...] = ()
    """Names of the report's figures and tables to look at."""
    paper: str = ""
    """The paper's value, where it has more than pictures."""
    imagenet: bool = False
    """Whether it is about ImageNet: then the miniature can do no more than point in a direction."""


CLOSE_IOU = 0.8
"""Mask IoU from which a student counts as a close copy; class means reach about 0.5."""

CLOSE_L1 = 0.02
"""L1 up to which it does: a hundredth of the range [-1, 1]; class means stay at about 0.03."""

CLOSE_L1_IMAGENET = 0.1
"""The same for ImageNet's textures and backgrounds, which are full of detail: a twentieth of the range."""

FREE_RESPONSE = 0.5
"""Noise response (a correlation, see `metrics.noise_response`) from which a student follows noise it has never seen."""

EQUIVALENT = 0.02
"""Test accuracy within which two sources of counterfactuals count as equally good."""

FAR_ABOVE = 0.3
"""Gain in test accuracy that counts as far above."""

LEARNED = 0.9
"""Train accuracy above which a classifier has learned its training set."""

NEAR_CHANCE = 0.2
"""Test accuracy below which a ten-way classifier has learned next to nothing about shape."""

BIGGAN_PARAMETERS = 55_880_833
"""Parameters of BigGAN-deep-256, each mechanism of the ImageNet CGN."""

U2NET_PARAMETERS = 44_009_869
"""Parameters of the U²-Net behind its shape mechanism."""

CLAIMS = (
    Claim(
        "mechanisms",
        "Sec. 4.3, Fig. 7",
        "On double-colored MNIST the students closely approximate each mechanism of the CGN.",
        f"mask IoU above {CLOSE_IOU}, L1 of texture and background below {CLOSE_L1}, on noise no training saw",
        "one of them on the other side",
        ("mnist_kd",),
        ("figure_7a_shape", "figure_7b_texture", "figure_7c_background"),
    ),
    Claim(
        "imagenet_mechanisms",
        "Sec. 4.3, Fig. 2",
        "On ImageNet the students closely approximate each mechanism of the CGN.",
        f"mask IoU above {CLOSE_IOU}, L1 of texture and background below {CLOSE_L1_IMAGENET}, on noise no training saw",
        "one of them on the other side",
        ("imagenet_kd",),
        ("figure_2a_shape", "figure_2b_texture", "figure_2c_background"),
        imagenet=True,
    ),
    Claim(
        "counterfactuals",
        "Appendix B.2, Fig. 6",
        "Composed, the students make counterfactuals like the CGN's.",
        f"a classifier that learns from theirs alone comes within {100 * EQUIVALENT:.0f} points of one that learns "
        "from the CGN's",
        "it stays further behind",
        ("ood_robustness",),
        ("figure_6_mnist", "robustness"),
    ),
    Claim(
        "lightweight",
        "Sec. 1, Appendix A.2",
        "The students are a lightweight version of the CGN: 16 times fewer parameters than BigGAN.",
        "a student has fewer parameters than the mechanism that it replaces, and is no slower",
        "it has more, or is slower",
        ("mnist_kd",),
        ("compression",),
        paper="16 times smaller",
    ),
    Claim(
        "masks_directly",
        "Sec. 3.1",
        "A TinyGAN learns binary masks directly, so that the shape mechanism needs no U²-Net.",
        f"mask IoU above {CLOSE_IOU} on ImageNet, where the teacher's masks come from a U²-Net",
        "an IoU below that",
        ("imagenet_kd",),
        ("figure_2a_shape",),
        imagenet=True,
    ),
    Claim(
        "random_noise",
        "Sec. 4.3",
        "The trained students do not generalize to random noise.",
        "trained as in the released scripts, a student responds to unseen noise unlike its teacher: noise response "
        f"below {FREE_RESPONSE}",
        "a noise response above that",
        ("noise_pairing",),
        ("noise_pairing",),
    ),
    Claim(
        "capacity",
        "Sec. 4.3",
        "That may be due to the students' reduced capacity.",
        "a student of the same size, trained on noise that belongs to its images, does no better",
        "it follows its noise better because of the pairing alone",
        ("noise_pairing",),
        ("noise_pairing",),
    ),
    Claim(
        "teacher_noise",
        "Sec. 4.4, Appendix D, Fig. 11",
        "The teacher's own outputs are noisy, and this is why the students show artifacts.",
        "the students hold no more high-frequency energy than their teacher: ratio below 1",
        "they add noise of their own: ratio above 1",
        ("mnist_kd",),
        ("figure_11",),
    ),
    Claim(
        "kl_better",
        "Sec. 4.4, Appendix D.2",
        "A KL term between teacher and student gives better results, for several mechanisms.",
        "higher mask IoU, lower L1 than without it, all else equal",
        "lower mask IoU, higher L1",
        ("kl_convergence",),
        ("kl_convergence_shape", "kl_convergence_texture", "kl_convergence_background"),
    ),
    Claim(
        "kl_faster",
        "Appendix D.2, Fig. 15",
        "With KL the students converge faster.",
        "fewer steps to a fixed held-out fidelity than without it",
        "more steps",
        ("kl_convergence",),
        ("figure_15_mnist",),
    ),
    Claim(
        "imagenet_kl_faster",
        "Appendix D.2, Fig. 15",
        "On ImageNet masks with KL are better after epoch 1 than those without it after epoch 23.",
        "higher mask IoU with KL after 1/30 of the training than without it after 23/30",
        "lower mask IoU",
        ("imagenet_kd",),
        ("figure_15",),
        imagenet=True,
    ),
    Claim(
        "cross_entropy",
        "Appendix D, Fig. 12",
        "Cross entropy for generator and discriminator leaves artifacts in the masks by the end of training.",
        "lower mask IoU than with the plain loss",
        "a mask IoU as high or higher",
        ("ablation_losses",),
        ("figure_12_cross_entropy",),
    ),
    Claim(
        "d1",
        "Appendix D.1, Fig. 13",
        "KL instead of L1 at each layer does not work: L1 is needed there.",
        "lower mask IoU than with the plain loss",
        "a higher one",
        ("ablation_losses",),
        ("figure_13_d1",),
    ),
    Claim(
        "d2_images",
        "Appendix D.2, Fig. 14",
        "KL of the outputs beside L1 at each layer improves texture and background.",
        "lower L1 of texture and background than with the plain loss",
        "higher L1",
        ("ablation_losses",),
        ("figure_14_d2",),
    ),
    Claim(
        "d2_masks",
        "Appendix D.2, Fig. 14",
        "With that same loss the masks lose their shape after a few epochs.",
        "lower mask IoU than with the plain loss",
        "a higher one",
        ("ablation_losses",),
        ("figure_14_d2", "ablation_losses_shape"),
    ),
    Claim(
        "d3",
        "Appendix D.3, Fig. 16",
        "MSE instead of L1 gives noisier images.",
        "more high-frequency energy than with the plain loss",
        "less of it",
        ("ablation_losses",),
        ("figure_16_d3",),
    ),
    Claim(
        "lambdas",
        "Sec. 3.1 and 4.2, Eq. 7",
        "TinyGAN's weights of the loss terms, λ1 = 0.2 and λ2 = 0.01, are kept unchanged.",
        "no searched setting does better on fresh seeds",
        "one does",
        ("sweep_lambdas",),
        ("sweep_lambdas_fresh_seeds", "sweep_lambdas_response"),
        paper="λ1 = 0.2, λ2 = 0.01",
    ),
    Claim(
        "baseline",
        "Sec. 4.2",
        "On MNIST distillation beats the baseline: a CGN of TinyGANs trained without a teacher.",
        "a classifier that learns from SKDCGN's counterfactuals is better than one that learns from the baseline's",
        "it is worse",
        ("ood_robustness",),
        ("robustness", "baseline"),
    ),
    Claim(
        "imagenet_tinygan",
        "Appendix C.1, Fig. 8",
        "The baseline's TinyGAN, distilled on all classes of ImageNet, improves over its training.",
        "lower L1 to BigGAN's images at the end than after the first epoch",
        "a higher one",
        ("baseline_cgn_tinygan",),
        ("figure_8a", "figure_8b"),
        imagenet=True,
    ),
    Claim(
        "imagenet_baseline",
        "Sec. 4.2, Appendix C, Figs. 9, 10",
        "On ImageNet SKDCGN's counterfactuals are better than the baseline's.",
        "a smaller Fréchet distance to the CGN's counterfactuals",
        "a larger one",
        ("baseline_cgn_tinygan",),
        ("figure_9", "figure_10"),
        imagenet=True,
    ),
    Claim(
        "invariance",
        "Abstract, Sec. 1",
        "Counterfactuals train a classifier to rely on shape, where the original data teaches it color.",
        f"test accuracy with random colors more than {100 * FAR_ABOVE:.0f} points above training on the original data",
        "a smaller gain",
        ("ood_robustness",),
        ("robustness",),
        paper="CGN's own paper: 10.3 % to 89.0 %",
    ),
    Claim(
        "robustness",
        "Sec. 1: announced, never reported",
        "SKDCGN's counterfactuals are as good for out-of-distribution robustness as the CGN's.",
        f"test accuracy within {100 * EQUIVALENT:.0f} points of the CGN's, for the published students too",
        "further behind",
        ("ood_robustness",),
        ("robustness",),
    ),
    Claim(
        "table1_noise",
        "Sec. 4.5, Table 1",
        "Shape masks with unit Gaussian noise teach a classifier its training set and nothing else.",
        f"train accuracy above {LEARNED}, test accuracy below {NEAR_CHANCE}, whenever the masks are modified",
        "either on the other side, where unmodified masks are learned",
        ("table1_shape_im",),
        ("table_1", "figure_3"),
        paper="train 99.9 %, test 14.96 %",
    ),
    Claim(
        "table1_rotation",
        "Sec. 4.5, Table 1",
        "So do shape masks rotated at random.",
        f"train accuracy above {LEARNED}, test accuracy below {NEAR_CHANCE}, whenever the masks are modified",
        "either on the other side, where unmodified masks are learned",
        ("table1_shape_im",),
        ("table_1", "figure_3"),
        paper="train 99.1 %, test 13.51 %",
    ),
    Claim(
        "table1_transparency",
        "Sec. 4.5, Table 1",
        "Of the three modifications of the mask, 3/4 transparency hurts the classifier least.",
        "higher test accuracy than with noise and with rotation",
        "lower than with one of them",
        ("table1_shape_im",),
        ("table_1",),
        paper="58.86 % against 14.96 % and 13.51 %",
    ),
    Claim(
        "transparency_better",
        "Sec. 4.4",
        "Masks at 3/4 of their value train a better invariant classifier than the CGN's own.",
        "higher test accuracy than with unmodified masks",
        "lower",
        ("table1_shape_im",),
        ("transparency_curve", "table_1"),
        paper='"an increase"; Table 1 has 58.86 % against the CGN paper\'s 89.0 %',
    ),
    Claim(
        "imagenet_robustness",
        "Sec. 1: announced, never reported",
        "SKDCGN's ImageNet counterfactuals make classifiers as robust as the CGN's do.",
        f"accuracy, shape bias, and accuracy on exchanged backgrounds no more than {100 * EQUIVALENT:.0f} points below "
        "training with the CGN's",
        "one of them further below",
        ("imagenet_ood",),
        ("imagenet_ood",),
        imagenet=True,
    ),
    Claim(
        "single_gpu",
        "Sec. 5",
        "Students give results like the CGN's on one standard GPU of low configuration.",
        "memory and images per second of students and CGN on such a GPU",
        "a student that does not fit it",
        (),
        imagenet=True,
    ),
)
"""The paper's claims, in the order of the report."""
