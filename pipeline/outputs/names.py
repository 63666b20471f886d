"""Names of the files in the outputs of jobs: where they are written, and where others look for them."""

# calibrate and distill: the settings; the key `job` names the job.
CONFIG = "config.json"

# synthesize and compact: files that people look at.
SHEET, SNAPSHOTS = "contact_sheet.png", "forming.json"

# calibrate. The report is written last, and removed before anything is replaced: it belongs to the `config.json`
# beside it. Checkpoints of trainings are there until all trainings are done.
RANGES, REPORT, SENSITIVITY = "ranges.json", "report.json", "sensitivity.json"
QAT_CHECKPOINTS = ".qat-checkpoints"

# distill. The result is written last.
METRICS, RESULT, CURVE = "metrics.jsonl", "result.json", "curve.png"
BEST, LAST = "student/best", "student/last"
CHECKPOINTS = "checkpoints"

# evaluate
EVALUATION = "evaluation.json"
