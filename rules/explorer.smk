# One page on which results can be explored: of what is published, and of one's own.

WEB = sorted(map(os.path.relpath, (ROOT / "src/d2dmoe/explorer/web").rglob("*.*")))


rule explorer:
    # The page of results/reference, and one for each suite whose tables are there.
    input:
        "results/explorer/reference.html",
        [tables.explorer_page(suite) for suite in explorer.suites_in(PLAN, Path.cwd())],
    localrule: True


rule published_explorer:
    input:
        lambda w: published_files(),
        web=WEB,
    output:
        "results/explorer/reference.html",
    log:
        "results/logs/explorer/reference.log",
    localrule: True
    params:
        reference=str(REFERENCE),
        code=PLAN.explorer_code("published_explorer"),
    script:
        "../scripts/published_explorer.py"


rule own_explorer:
    input:
        lambda w: explorer.files(PLAN, w.suite),
        web=WEB,
    output:
        report(
            tables.explorer_page("{suite}"),
            caption="../report/explorer.rst",
            category="Explorer",
            labels={"suite": "{suite}"},
        ),
    log:
        "results/logs/explorer/{suite}.log",
    wildcard_constraints:
        suite="|".join(SUITES),
    localrule: True
    params:
        config=lambda w: publishing.config_text(PLAN),
        configfiles=[os.path.relpath(path) for path in workflow.configfiles],
        code=PLAN.explorer_code("explorer"),
    script:
        "../scripts/explorer.py"
