"""A run with Dimuon, by both SDKs on one server: equal losses, and it resumes from its save."""

import pytest


def run(sdk, login):
    found = []
    with sdk.ServiceClient(**login) as service:
        training = service.create_lora_training_client(
            "tinkex/sprout", rank=4, seed=5, optimizer=sdk.types.DimuonOptimizerConfig()
        ).result()
        assert training.get_info().optimizer_config.type == "dimuon"
        tokens = [5, 6, 7, 8, 9]
        datum = sdk.Datum(
            sdk.ModelInput.from_ints(tokens[:-1]),
            {"target_tokens": tokens[1:], "weights": [1.0] * 4},
        )
        params = sdk.types.DimuonParams(learning_rate=0.01)

        def step(client):
            loss = client.forward_backward([datum], "cross_entropy")
            client.optim_step(params).result()
            found.append(loss.result().metrics["loss:sum"])

        for _ in range(3):
            step(training)
        path = training.save_state("halfway", overwrite=True).result().path
        rest = service.create_rest_client()
        info = rest.get_weights_info_by_tinker_path(path).result()
        assert info.optimizer_config.type == "dimuon"
        step(training)
        again = service.create_training_client_from_state_with_optimizer(path).result()
        assert again.get_info().optimizer_config.type == "dimuon"
        step(again)
        with pytest.raises(Exception, match="takes DimuonParams"):
            training.optim_step(sdk.AdamParams()).result()
    assert found[3] == found[4]
    assert found[2] < found[0]
    return found


@pytest.mark.filterwarnings("ignore")  # what the official one leaves open
def test_dimuon_by_both_sdks(login, load_sdk):
    ours = run(load_sdk("tinkex"), login)
    official = run(load_sdk("tinker"), login)
    assert ours == pytest.approx(official, rel=1e-6)
