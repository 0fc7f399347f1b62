"""Write the breast-cancer table that scikit-learn carries as a CSV file: python make_data.py"""

from pathlib import Path

from sklearn.datasets import load_breast_cancer

table = load_breast_cancer(as_frame=True)
frame = table.frame.rename(columns={"target": "label"})
frame["label"] = [str(table.target_names[label]) for label in frame["label"]]
frame.to_csv(Path(__file__).with_name("tumours.csv"), index=False)
