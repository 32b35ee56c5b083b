"""How CUDA graphs are recorded: what PyTorch is asked for, on machines without a GPU too."""

from contextlib import contextmanager

import torch

from torch_utils.graphs import Graphs


def test_all_recordings_share_a_pool_and_a_stream_and_let_other_threads_go_on(monkeypatch):
    asked = []

    class Graph:
        def replay(self):
            asked.append(("replay", self))

    @contextmanager
    def capture(graph, **options):
        asked.append((graph, options))
        yield

    pools = iter(range(9))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: ("stream", device))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    device, done = torch.device("cuda", 1), []
    graphs = Graphs(device)
    replays = [graphs.record(lambda: done.append(True)) for _ in range(2)]
    options = {"pool": 0, "stream": ("stream", device), "capture_error_mode": "thread_local"}
    assert [options for _, options in asked] == [options, options]
    assert asked[0][0] is not asked[1][0]
    assert done == [True, True]
    replays[1]()
    assert asked[2] == ("replay", asked[1][0])
