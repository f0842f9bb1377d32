"""Inputs that several test files of tests/faces share."""

import shutil

import numpy as np

UPRIGHT_POINTS = np.array([[40.0, 50], [80, 50], [60, 72], [44, 95], [76, 95]])


def write_constant_onnx(path, shape, answer, outputs=1):
    """An ONNX file that gives `answer` for every image of `shape`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    answer = np.asarray(answer, dtype=np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["data"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["none"]),
        helper.make_node("Unsqueeze", ["none"], ["column"], axes=[1]),
    ]
    nodes += [helper.make_node("Add", ["column", "answer"], [f"out{n}"]) for n in range(outputs)]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"out{n}", TensorProto.FLOAT, [1, len(answer)]) for n in range(outputs)],
        [numpy_helper.from_array(np.zeros(1, np.float32), "zero"), numpy_helper.from_array(answer[None], "answer")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6), path)
    return path


def write_nested_pack(root, weights, name="insightface_small"):
    inner = root / name / name
    shutil.copytree(weights("insightface_small"), inner, ignore=shutil.ignore_patterns(".*"))
    (inner / "README.txt").write_text("kept")
    return inner
