"""UCI Adult: does a person earn more than 50,000 dollars a year?  By constants that are public."""

import csv
import pathlib

import numpy as np

from jaxdp.data.parsers import Files, Parsed

_COLUMNS = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation",
    "relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country",
    "income",
)  # fmt: skip

# The values that the data set's documentation (adult.names) lists; an unknown value ("?") is all zeros.
_CATEGORIES = {
    "workclass": "Private Self-emp-not-inc Self-emp-inc Federal-gov Local-gov State-gov Without-pay "
    "Never-worked",
    "marital-status": "Married-civ-spouse Divorced Never-married Separated Widowed Married-spouse-absent "
    "Married-AF-spouse",
    "occupation": "Tech-support Craft-repair Other-service Sales Exec-managerial Prof-specialty "
    "Handlers-cleaners Machine-op-inspct Adm-clerical Farming-fishing Transport-moving Priv-house-serv "
    "Protective-serv Armed-Forces",
    "relationship": "Wife Own-child Husband Not-in-family Other-relative Unmarried",
    "race": "White Asian-Pac-Islander Amer-Indian-Eskimo Other Black",
    "sex": "Female Male",
    "native-country": "United-States Cambodia England Puerto-Rico Canada Germany Outlying-US(Guam-USVI-etc) "
    "India Japan Greece South China Cuba Iran Honduras Philippines Italy Poland Jamaica Vietnam Mexico "
    "Portugal Ireland France Dominican-Republic Laos Ecuador Taiwan Haiti Columbia Hungary Guatemala "
    "Nicaragua Scotland Thailand Yugoslavia El-Salvador Trinadad&Tobago Peru Hong Holand-Netherlands",
}

PREPROCESSING = (
    "age / 100, years of education / 16, hours a week / 100, log(1 + capital gain) and log(1 + capital loss) "
    "/ log(100,000); categories as 0/1 columns of the documented values, unknown ones all 0; sampling weight "
    "and the name of the education left out; every constant is public"
)


def adult(files: Files) -> Parsed:
    """The census files, with the split that they come in."""
    train_x, train_y = _read(files["adult.data"])
    test_x, test_y = _read(files["adult.test"])
    return Parsed(train_x, train_y, test_x, test_y, ("<=50K", ">50K"))


def _read(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    with open(path, encoding="ascii", newline="") as file:
        # The test file opens with a comment, and its labels end with a full stop.
        rows = [row for row in csv.reader(file, skipinitialspace=True) if row and not row[0].startswith("|")]
    for number, row in enumerate(rows, 1):
        if len(row) != len(_COLUMNS):
            raise ValueError(f"{path.name}: record {number} has {len(row)} fields, not {len(_COLUMNS)}")
    columns = dict(zip(_COLUMNS, np.array(rows).T, strict=True))
    income = np.char.rstrip(columns["income"], ".")
    if not np.isin(income, ("<=50K", ">50K")).all():
        raise ValueError(f"{path.name}: an income is neither <=50K nor >50K")
    numbers = {name: columns[name].astype(np.float64) for name in _COLUMNS if _is_number(name)}
    features = [
        numbers["age"] / 100,
        numbers["education-num"] / 16,
        numbers["hours-per-week"] / 100,
        np.log1p(numbers["capital-gain"]) / np.log(100_000),
        np.log1p(numbers["capital-loss"]) / np.log(100_000),
    ]
    for name, values in _CATEGORIES.items():
        if not np.isin(columns[name], [*values.split(), "?"]).all():
            raise ValueError(f"{path.name}: column {name} holds a value that the documentation does not list")
        features += [columns[name] == value for value in values.split()]
    return np.stack(features, 1).astype(np.float32), (income == ">50K").astype(np.int32)


def _is_number(column: str) -> bool:
    return column not in _CATEGORIES and column not in ("fnlwgt", "education", "income")
