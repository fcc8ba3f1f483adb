"""Every decision of the coordinator, as pure functions of (state, command, moment).

    commands.py     what is asked                      SubmitCampaign, SyncSite, ReportMerge …
    events.py       what happened                      CampaignOpened, JobLeased, VersionPromoted …
    transitions.py  the job's life as a table
    state.py        the fold of the events
    decide.py       a command -> the fact it adds, or a refusal with the reason
    reports.py      what a site's word on an attempt establishes
    known.py        which site, campaign, version a command means
    moment.py       what the shell knows of time
    plan.py         a state -> everything that follows from it, each with its reason
    able.py         which sites could do what
    orders.py       what a job is told
    comparison.py   the rivals a campaign is compared with
    place.py        which planned job a site gets
    owed.py         what the coordinator's own worker should be doing
    waits.py        why nothing happens
    machine.py      decide, then plan until nothing follows
    gate.py         may this candidate be promoted
    access.py       who may read and write which blob
    view.py         state and presence -> a frozen picture
    story.py        events -> the life of one job, round, version, site in words

Nothing here knows a clock, a socket, a file, a thread or a die.
"""
