"""A request's id on its way from worker to worker."""

from hypothesis import given
from hypothesis import strategies as st

from tinkex.mesh.rpc.service import is_trace
from tinkex.mesh.workers.request_log import REQUEST_ID_CHARS, request_of, trace_of

ids = st.binary(min_size=REQUEST_ID_CHARS // 2, max_size=REQUEST_ID_CHARS // 2).map(bytes.hex)


@given(ids.filter(lambda one: int(one[:16], 16)))
def test_an_id_goes_into_a_trace_and_comes_out_of_it(request_id):
    trace = trace_of(request_id)
    assert is_trace(trace)
    assert request_of(trace) == request_id


def test_a_trace_of_others_gives_its_own_id_and_none_gives_nothing():
    own = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert request_of(own) == "0af7651916cd43dd8448eb211c80319c"
    assert request_of("") == ""
