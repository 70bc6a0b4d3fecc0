"""The paper's figures of SKDCGN on ImageNet: 2, 6 and 15.

Where the CGN authors' weights were not available, they show the packaged miniature instead, and their titles say so.
"""

from matplotlib.figure import Figure

from analysis.frame import style
from analysis.frame.view import View
from analysis.kl_convergence import masks_by_epoch
from analysis.mnist_kd import counterfactual_sheet, mechanism_sheets

EXPERIMENT = "imagenet_kd"

_ARMS = ("kl", "no_kl")


def figure_2(view: View) -> dict[str, Figure]:
    """Draw Fig. 2 a-c: each mechanism of the teacher over its student; see `mnist_kd.mechanism_sheets`."""
    return mechanism_sheets(view, EXPERIMENT, "2", "ImageNet")


def figure_6(view: View) -> dict[str, Figure]:
    """Draw Fig. 6: counterfactuals of SKDCGN over those of the CGN, on the same noise and labels."""
    return {"figure_6": counterfactual_sheet(view, EXPERIMENT, "Fig. 6: counterfactuals, SKDCGN over CGN, ImageNet")}


def figure_15(view: View) -> dict[str, Figure]:
    """Draw Fig. 15: masks with KL and without it over the training; see `kl_convergence.masks_by_epoch`."""
    title = "Fig. 15: masks with KL after epoch 1, without after epoch 23, ImageNet"
    shown = view.chosen(EXPERIMENT, by={"objective": list(_ARMS)}, kind="student", mechanism="shape")
    header = {}
    if not shown.empty and shown["dataset"].iloc[0] == "miniature":  # ten classes: the first ten inputs have them all
        header = {
            "label": view.store.load_tensors(shown["run_id"].iloc[0], "samples")["labels"][: style.COLUMNS].tolist()
        }
    return {"figure_15": masks_by_epoch(view, EXPERIMENT, title, shown, "objective", _ARMS, header)}
