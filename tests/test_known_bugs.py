"""Bugs that others shipped (client.md, section 5): what excludes each here, and the test of it.

A row without a test, or a test that was renamed away, fails this file.
"""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# The bug, what excludes it, and the tests that would catch it.
BUGS = [
    (
        "Polls in a tight loop on 408/5xx",
        "PollPolicy.floor between the starts of two polls; back-off from the first failure",
        ["unit/client/test_poller.py::test_unfinished_work_is_asked_for_again_but_never_in_a_tight_loop",
         "unit/client/test_poller.py::test_failing_server_is_asked_less_and_less_often",
         "unit/client/test_session_poller.py::test_answers_without_news_keep_the_floor"],
    ),
    (
        "A background task's crash leaves the caller waiting for ever",
        "the loop resolves every future it took; background work is supervised",
        ["unit/client/test_loop.py::test_operation_that_raises_system_exit_resolves_every_future",
         "unit/client/test_loop.py::test_close_fails_open_operations_and_leaves_no_thread",
         "unit/client/test_loop.py::test_interpreter_exit_is_not_held_up_by_open_operations",
         "unit/client/test_session_poller.py::test_crash_again_and_again_is_told_to_everybody_who_waits"],
    ),
    (
        "Two limiters for one key under a race",
        "the registry makes a limiter under its lock",
        ["unit/client/test_limiter.py::test_hundred_threads_asking_at_once_get_one_limiter"],
    ),
    (
        "Circuit breaker loses failures, half-open lets all probes through",
        "counts and probes change on one event loop only",
        ["unit/client/test_circuit_breaker.py::test_failures_in_parallel_are_all_counted",
         "unit/client/test_circuit_breaker.py::test_half_open_admits_exactly_its_quota"],
    ),
    (
        "Semaphore polls every 2 ms",
        "waiters stand in a queue and are woken",
        ["unit/client/test_budget.py::test_waiters_are_served_in_order_of_arrival",
         "unit/client/test_budget.py::test_a_large_request_is_not_passed_by_small_ones_for_ever"],
    ),
    (
        "Dead waiters keep their byte budget",
        "a cancelled waiter leaves the queue; a holder gives back in every case",
        ["unit/client/test_budget.py::test_cancelled_waiters_and_holders_return_their_share"],
    ),
    (
        "Tokenizer loaded many times at once",
        "one load for each name, the others wait for it",
        ["unit/client/test_tokenizer.py::test_fifty_threads_load_a_tokenizer_once"],
    ),
    (
        "Debounce and cache entries leak",
        "registries hold weakly; a client owns what it remembers",
        ["unit/client/test_limiter.py::test_limiters_of_clients_that_are_gone_are_forgotten",
         "integration/client/test_bad_network.py::test_nothing_is_left_behind",
         "e2e/test_clones.py::test_clones_of_a_process_share_one_connection_and_end_with_it"],
    ),
    (
        "Heartbeat sent to a path the stub accepted and the server did not",
        "one table of endpoints for client and server",
        ["integration/client/test_many.py::test_heartbeat_reaches_the_real_server"],
    ),
    (
        "Field `optimizer` sent under another name; nulls the server refuses",
        "messages leave out what is None; golden bodies",
        ["unit/client/test_golden.py::test_checkpoint",
         "unit/client/test_golden.py::test_create_training_client_from_state"],
    ),
    (
        "Serial heartbeats: one slow server delays all",
        "each session has its own task",
        ["unit/client/test_session.py::test_slow_server_delays_no_other_sessions_heartbeat"],
    ),
    (
        "A stopped child is restarted",
        "close is final and idempotent",
        ["unit/client/test_loop.py::test_close_is_final_and_idempotent",
         "unit/client/test_service.py::test_closing_twice_is_the_same_as_once_and_final"],
    ),
    (
        "Progress time-out fires before the first attempt",
        "the elapsed time is looked at after an attempt",
        ["unit/client/test_retry.py::test_time_can_be_the_limit_instead",
         "unit/client/test_sampling_pressure.py::test_throttling_without_end_ends_with_the_progress_timeout"],
    ),
    (
        "DELETE with empty answer crashes; query strings lost; paths over-encoded",
        "an endpoint says whether its answer holds anything; one place writes paths",
        ["unit/client/test_rest.py::test_delete_takes_an_answer_without_a_body",
         "unit/client/test_transport.py::test_path_of_the_base_url_is_kept_and_queries_are_sent",
         "unit/client/test_rest.py::test_request_and_result_are_those_of_the_recording"],
    ),
    (
        "`--json` output mixed with progress text; declined delete exits 0",
        "standard output carries the result alone; a no is exit code 1",
        ["e2e/test_commands.py::test_reading_commands_print_the_official_json",
         "e2e/test_commands.py::test_delete_asks_first_and_a_no_ends_with_exit_code_1"],
    ),
    (
        "`--force` download deletes the old copy first; half-written files stay; `..`",
        "written beside, checked, renamed; hostile names refused before anything is written",
        ["unit/client/test_download.py::test_folder_that_is_there_stays_until_the_new_one_is_complete",
         "unit/client/test_download.py::test_connection_that_breaks_every_time_leaves_the_old_file",
         "unit/client/test_download.py::test_hostile_name_writes_nothing"],
    ),
    (
        "Reporter multiplies timers, blocks its own drain, counts failed sends as sent",
        "one task and one queue; a batch is counted when its answer came",
        ["unit/client/test_telemetry.py::test_many_events_share_one_timer",
         "unit/client/test_telemetry.py::test_drain_takes_what_is_there_and_is_not_held_up_by_what_comes",
         "unit/client/test_telemetry.py::test_failed_sends_are_counted_as_failed"],
    ),
    (
        "Negative or huge Retry-After",
        "a time counts only within (0, 60] s",
        ["unit/client/test_retry.py::test_passing_failure_is_sent_again_when_the_server_says_or_soon",
         "integration/client/test_bad_network.py::test_storm_of_refusals_is_lived_through"],
    ),
    (
        'A stream "works" only with a fully buffered body',
        "the body is read line by line while it comes",
        ["unit/client/test_sample_stream.py::test_each_piece_is_seen_before_the_next_is_sent",
         "integration/server/test_streaming.py::test_tokens_come_while_the_server_still_samples"],
    ),
    (
        "A 429 test passes although the header is ignored",
        "tests read the seconds that the virtual clock was asked to wait",
        ["unit/client/test_sender.py::test_passing_failure_is_tried_again_after_the_time_the_server_names",
         "unit/client/test_sampling.py::test_throttled_request_goes_again_under_its_number_after_the_time_named"],
    ),
    (
        "Integration stub answers anything",
        "a scripted peer answers 404 to what it was not told of, and golden tests compare bodies",
        ["unit/client/test_golden.py::test_create_session",
         "e2e/test_same_program.py::test_both_sdks_send_equal_requests_and_get_equal_results"],
    ),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug[0][:40])
def test_each_known_bug_has_a_design_and_tests(bug):
    _, design, tests = bug
    assert design
    assert tests
    for test in tests:
        file, _, name = test.partition("::")
        assert name in functions_of(TESTS / file), f"{test} is not there"


def functions_of(path):
    found = ast.walk(ast.parse(path.read_text()))
    return {one.name for one in found if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
