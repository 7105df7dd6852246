"""What a method may know: the tiers of the protocol, and the error of one that asks for more."""

from enum import Flag, auto


class KnowledgeError(PermissionError):
    """A method asked for what its declared tier does not allow; the message names both."""


class Knowledge(Flag):
    """What a method uses beyond the weights of the source B and the target A; each is one bit, so tiers are unions."""

    WEIGHTS = 0
    SHARED = auto()
    """Images of the classes that A and B share, with labels."""
    OWN = auto()
    """Images of A's own training classes, with labels."""
    SYNTHETIC = auto()
    """Inputs made without any real image of a class that A does not know."""
    OTHERS = auto()
    """Real images, without labels, of classes that neither network was trained on."""
    SOURCE = auto()
    """Statistics of B's activations on B's own training images, the concept's among them."""
    SIBLINGS = auto()
    """Networks of other architectures, trained like B or like A."""
    LABELLED = auto()
    """Images of the concept with their label, at A: what no injection method may use."""


T0 = Knowledge.WEIGHTS
T1 = Knowledge.SHARED
T1_PLUS = T1 | Knowledge.OWN
T2 = T1_PLUS | Knowledge.SYNTHETIC
T3 = T2 | Knowledge.OTHERS
B = Knowledge.SOURCE
SIBLINGS = Knowledge.SIBLINGS
ORACLE = T3 | B | Knowledge.LABELLED

_LADDER = {"T3": T3, "T2": T2, "T1+": T1_PLUS, "T1": T1, "T0": T0}


def tier_name(knowledge: Knowledge) -> str:
    """The lowest rung of T0, T1, T1+, T2, T3 that covers what is used; "& B" and "& N" if the source's statistics or
    other networks are used too; "oracle" with labelled images of the concept."""
    if Knowledge.LABELLED in knowledge:
        return "oracle"
    rest = knowledge & ~(B | SIBLINGS)
    rung = next(name for name, covered in reversed(_LADDER.items()) if rest in covered)
    return rung + " & B" * (B in knowledge) + " & N" * (SIBLINGS in knowledge)
