"""What sbatch says, as recorded and as no one hopes for: nothing odd becomes an id or a final no."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slurm_samples import said

from site_agent.launchers.slurm.submission import read_submission


@pytest.mark.parametrize(
    ("completed", "field", "words"),
    [
        (said("59\n"), "id", "59"),
        (said("59;cluster\n"), "id", "59"),
        (said("Welcome to the machine\n59\n"), "id", "59"),
        (said(""), "unsure", "named no job"),
        (said("Submitted batch job\n"), "unsure", "named no job"),
        (
            said(rc=1, err="sbatch: error: Batch job submission failed: Invalid qos specification"),
            "refused",
            "qos",
        ),
        (
            said(
                rc=1, err="sbatch: error: Batch job submission failed: Invalid account or account/partition"
            ),
            "refused",
            "",
        ),
        (
            said(rc=1, err="error: QOSMaxWallDurationPerJobLimit\nBatch job submission failed: Job violates"),
            "refused",
            "",
        ),
        (
            said(rc=1, err="error: QOSMaxSubmitJobPerUserLimit\nBatch job submission failed: Job violates"),
            "later",
            "",
        ),
        *(
            (said(rc=1, err=f"sbatch: error: Batch job submission failed: {words}"), "refused", words)
            for words in (
                "Requested node configuration is not available",
                "Node count specification invalid",
                "Requested time limit is invalid (missing or exceeds some limit)",
                "Invalid feature specification",
                "Invalid generic resource (gres) specification",
                "User's group not permitted to use this partition",
            )
        ),
        (said(rc=1, err="sbatch: unrecognized option '--gpu-per-node=4'"), "refused", "--gpu-per-node"),
        *(  # as 22.05.8 and 24.11.5 said them: options that sbatch cannot read end with ssh's code
            (said(rc=255, err=f"sbatch: {words}\nTry 'sbatch --help'"), "refused", words)
            for words in (
                "unrecognized option '--frobnicate'",
                "error: Invalid --time specification",
                'error: "x" is not a valid node count',
            )
        ),
        (
            said(
                rc=1,
                err="sbatch: error: CPU count per node can not be satisfied\n"
                "sbatch: error: Batch job submission failed: Requested node configuration is not available",
            ),
            "refused",  # by 24.11.5; 22.05.8 takes it and lets it wait: PartitionConfig
            "CPU count",
        ),
        *(
            (said(rc=1, err=f"sbatch: error: Batch job submission failed: {words}"), "later", words)
            for words in (
                "Required partition not available (inactive or drain)",
                "Requested partition configuration not available now",
                "Requested reservation is invalid",
            )
        ),
        (said(rc=1, err="sbatch: error: Batch job submission failed: Unspecified error"), "objects", ""),
        (said(rc=1, err="sbatch: error: lua: not before noon"), "objects", "not before noon"),
        (said(rc=1, err="Unable to contact slurm controller (connect failure)"), "later", "Unable"),
        (said(rc=1, err="Slurm temporarily unable to accept job, sleeping and retrying"), "later", ""),
        (said(rc=1, err="Socket timed out on send/recv operation"), "unsure", "timed out"),
        (said(rc=1, err="Zero Bytes were transmitted or received"), "unsure", ""),
        (said(rc=127, err="bash: sbatch: command not found"), "later", ""),
        (said(rc=255, err="ssh: connect to host"), "later", ""),
        (said(rc=255, err="sbatch: warning: of the site\nclient_loop: send disconnect"), "later", ""),
        (said(rc=-9), "later", ""),
        (said(rc=1), "later", "without a word"),
    ],
)
def test_what_sbatch_says_is_an_id_or_final_or_worth_another_try_or_in_doubt(completed, field, words):
    found = read_submission(completed)
    given = {
        name: getattr(found, name)
        for name in ("id", "refused", "later", "objects", "unsure")
        if getattr(found, name)
    }
    assert list(given) == [field]
    assert words in given[field]


@given(st.text(), st.text(), st.integers(-20, 255))
def test_sbatch_is_always_read_as_exactly_one_thing(out, err, rc):
    found = read_submission(said(out, rc, err))
    words = (found.id, found.refused, found.later, found.objects, found.unsure)
    assert sum(bool(word) for word in words) == 1
    assert not found.id or (rc == 0 and found.id.isdecimal())
