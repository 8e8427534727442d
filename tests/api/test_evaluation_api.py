"""GET /evaluation: the last report, none, and a damaged one."""

from app.core.settings import Settings
from tests.service import running_service


def test_the_last_report_is_answered(settings: Settings) -> None:
    with running_service(settings) as client:
        missing = client.get("/evaluation")
        assert missing.status_code == 404
        assert "Run `medpix evaluate` first" in missing.json()["detail"]
        folder = settings.home / "evaluation"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text('{"created_at": "2026-01-01", "split": {}, "tasks": {}, "models": {}}')
        answer = client.get("/evaluation")
        assert answer.json()["created_at"] == "2026-01-01"
        again = client.get("/evaluation", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        (folder / "results.json").write_text('{"created_at": "2026-')
        cut = client.get("/evaluation")
        assert cut.status_code == 503
        assert "cut or damaged. Run `medpix evaluate` again" in cut.json()["detail"]
