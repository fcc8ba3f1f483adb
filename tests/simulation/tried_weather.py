"""What falls upon the fixed cases: weather, liars, people, and lines that are cut at a chosen hour."""

from consortium.canonical import replace
from consortium.ids import SiteName
from simulation.drawn import drawn_weather
from simulation.liars import FORGETS, HUMS
from simulation.weather import PRESETS, Cut

_CLEARS_AFTER_HOURS = 12.0

CALM = replace(PRESETS["calm"], clears_after_hours=_CLEARS_AFTER_HOURS)
ENDLESS = PRESETS["calm"]  # nobody says that it has to end
FAULTS = replace(drawn_weather("rough"), clears_after_hours=_CLEARS_AFTER_HOURS)
LIES = replace(
    CALM,
    name="lies",
    repeat=0.05,
    lies_per_day=60.0,
    falsehoods=0.15,
    thieves_per_day=60.0,
    echoes=1.0,
    certificate_days=1,
)
PEOPLE = replace(
    CALM,
    name="people",
    begins_after_hours=0.5,
    loss=0.01,
    refusals=0.15,
    echoes=0.5,
    drains_per_day=6.0,
    drain_minutes=40.0,
    meddling_per_day=8.0,
)
MEDDLED = replace(CALM, name="meddled", meddling_per_day=40.0, begins_after_hours=1.5)
SILENCE = replace(CALM, name="silence", partitions_per_day=8.0, partition_minutes=240.0)
FULL = replace(
    CALM, name="full", coordinator_disk_full_per_day=60.0, disk_full_minutes=5.0, begins_after_hours=0.2
)
FALSE = replace(CALM, name="false", falsehoods=0.7)
DRAINED = replace(CALM, name="drained", drains_per_day=40.0, drain_minutes=15.0, lies_per_day=60.0)
WHIMS = replace(CALM, name="whims", whims=0.7)
CUT = replace(CALM, name="cut off", partitions_per_day=24.0, partition_minutes=90.0, partition_sigma=0.5)
GONE = replace(CALM, name="gone", cuts=(Cut(site=SiteName("north"), from_hours=0.85, hours=6.0),))
CRASHING = replace(GONE, name="gone, crashing", crashes_per_day=48.0, restart_minutes=50.0)
NIGHT = replace(CALM, name="night", cuts=(Cut(site=SiteName("west"), from_hours=1.1, hours=3.0),))
FAILING = replace(CALM, name="failing", failures=0.4)
BEHIND = replace(CALM, name="left behind", cuts=(Cut(site=SiteName("west"), from_hours=0.8, hours=1.5),))
REFUSING = replace(CALM, name="refusing", refusals=0.5)
MUTE = replace(
    CALM,
    name="mute",
    cuts=(Cut(site=SiteName("south"), from_hours=1.2, hours=0.58),),
    lies_per_day=6000.0,
    lies_told=(FORGETS,),
)
DOUBTED = replace(MEDDLED, name="doubted", falsehoods=0.6, begins_after_hours=0.0)
DOUBLED = replace(CALM, name="doubled", second_agents_per_day=20.0)
HUMMING = replace(SILENCE, name="humming", lies_per_day=400.0, lies_told=(HUMS,))
DOUBTFUL = replace(CALM, name="doubtful", falsehoods=0.5)
LENT = replace(CALM, name="lent", lent=0.3)
LAZY = replace(CALM, name="lazy", replays=0.7)
HARMFUL = replace(CALM, name="harmful", harms=0.5)
ALL = replace(
    FAULTS,
    name="all",
    lies_per_day=30.0,
    falsehoods=0.1,
    refusals=0.05,
    echoes=1.0,
    drains_per_day=3.0,
    certificate_days=1,
)
