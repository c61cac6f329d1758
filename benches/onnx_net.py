"""onnxruntime's fused RNN, GRU and LSTM: a graph of one operator, made in memory."""

import os
from typing import Any

import numpy as np
from cases import GATES, Case, Inputs

# Where ONNX keeps PyTorch's gates: i f g o as i o f c, r z n as z r h.
ORDER = {"rnn": [0], "gru": [1, 0, 2], "lstm": [0, 3, 1, 2]}


def forward(case: Case, data: Inputs) -> Any:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    def gates(y: np.ndarray) -> np.ndarray:
        return np.concatenate([np.split(y, GATES[case.cell])[i] for i in ORDER[case.cell]])

    w_ih, w_hh, b_ih, b_hh = map(gates, data.weights.values())
    parameters = {"W": w_ih[None], "R": w_hh[None], "B": np.concatenate([b_ih, b_hh])[None]}
    options = {
        "rnn": {"activations": [case.nonlinearity.capitalize()]},
        "gru": {"linear_before_reset": 1},  # PyTorch's r (W h + b), not W (r h) + b
        "lstm": {},
    }[case.cell]
    node = helper.make_node(case.cell.upper(), ["x", "W", "R", "B"], ["y"], **options)
    node.attribute.append(helper.make_attribute("hidden_size", case.H))
    shapes = {"x": (case.T, case.B, case.I), "y": (case.T, 1, case.B, case.H)}
    x, y = (helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in shapes.items())
    values = [numpy_helper.from_array(value, name) for name, value in parameters.items()]
    graph = helper.make_graph([node], "net", [x], [y], values)
    # The newest runtime reads no newer file than its own release knew.
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 14)])

    given = onnxruntime.SessionOptions()
    given.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])  # of `timing.pinned`
    given.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Its threads spin for the next piece of a call, and sleep as soon as the call is over: else
    # they would spin on the core of whoever is next.
    given.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), given, providers=["CPUExecutionProvider"]
    )
    return lambda: [session.run(None, {"x": data.x})[0][:, 0]]
