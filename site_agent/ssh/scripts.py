"""What runs at the site to move files: POSIX shell with the tools of any Linux login node.

``$1`` is the folder that all of it lies below: ``jobs/<job>/<attempt>/``, and ``cache/<sha256>`` for big files,
hard-linked into job directories. A name in the cache is a promise: the bytes were hashed here. What is on its
way lies beside it as ``.part``, written at given offsets, so that a writer whose line broke, and that lingers,
writes nothing but the same bytes again.
"""

BLOCK = 1 << 16  #: offsets of parts are multiples of it; a pipe holds as much
SMALL_BYTES_MAX = 1 << 20  #: below, files travel together; above, each on its own and through the cache

#: Input: a line ``sha256 size name`` a file of job directory $2. Says ``here``, ``cached``, or the bytes that are
#: in its part, one word a line. ``here`` only if all that was meant ($3) has been placed before.
SURVEY = """
cd "$1" 2>/dev/null || { mkdir -p "$1" && cd "$1"; } || exit
mkdir -p "jobs/$2" cache || exit
pushed=$(cat "jobs/$2/.pushed" 2>/dev/null)
while read -r sha size name; do
  if [ "$pushed" = "$3" ] && [ -f "jobs/$2/$name" ] && [ "$(wc -c <"jobs/$2/$name")" -eq "$size" ]
  then echo here
  elif [ -f "cache/$sha" ]; then echo cached
  elif [ -f "cache/$sha.part" ]; then echo $(wc -c <"cache/$sha.part")
  else echo 0
  fi
done
"""

#: Input: the bytes of $2 from block $3 on. Short reads are written as they come, so nothing is padded.
SEND = """
cd "$1/cache" || exit
exec dd of="$2.part" bs=65536 seek="$3" conv=notrunc 2>/dev/null
"""

#: The part of $2 becomes the file, if it has $3 bytes (else 10) and the digest that it is named by (else 11).
SEAL = """
cd "$1/cache" || exit
[ -f "$2" ] && exit 0
[ "$(wc -c <"$2.part")" -eq "$3" ] || exit 10
found=$(sha256sum <"$2.part") || exit
if [ "${found%% *}" != "$2" ]; then rm -f "$2.part"; exit 11; fi
chmod 400 "$2.part" && sync "$2.part" && mv -f "$2.part" "$2"
"""

#: Input: a tar of small files and of ``.sums``, their digests. Then $4 $5 ...: digest and name of cached ones.
#: site.json comes last: whoever finds it finds everything.
PLACE = """
root=$1 want=$3
cd "$1/jobs/$2" || exit
new=.push.$$
mkdir "$new" && tar -x -o -f - -C "$new" && (cd "$new" && sha256sum -c .sums >/dev/null 2>&1) || {
  rm -rf "$new"; exit 10
}
rm "$new/.sums"
shift 3
while [ $# -gt 0 ]; do
  if ! [ "$root/cache/$1" -ef "$2" ]; then
    mkdir -p "$(dirname "$2")" || exit
    ln -f "$root/cache/$1" "$2" 2>/dev/null || { cp "$root/cache/$1" "$new/.copy" && mv -f "$new/.copy" "$2"; } || exit
  fi
  shift 2
done
(cd "$new" && find . -type f ! -path ./site.json) | while read -r name; do
  mkdir -p "$(dirname "$name")" && mv -f "$new/$name" "$name" || exit
done || exit
[ ! -f "$new/site.json" ] || { sync . && mv -f "$new/site.json" site.json; } || exit
echo "$want" >"$new/.pushed" && sync "$new/.pushed" && mv -f "$new/.pushed" .pushed && sync . && rm -rf "$new"
"""

#: Input: the $4 bytes of file $3 of job directory $2.
WRITE = """
mkdir -p "$1/jobs/$2" && cd "$1/jobs/$2" || exit
cat >".$3.$$.tmp" && [ "$(wc -c <".$3.$$.tmp")" -eq "$4" ] || { rm -f ".$3.$$.tmp"; exit 10; }
sync ".$3.$$.tmp" && mv -f ".$3.$$.tmp" "$3" && sync .
"""

REMOVE = """
cd "$1/jobs/$2" 2>/dev/null || exit 0
rm -f "$3"
"""

#: The job directory goes at once; then what no job directory has used for two days. A link made or taken away
#: changes ctime, so that counts from the last use.
DROP = """
cd "$1/jobs" 2>/dev/null || exit 0
gone=.dropped.$$
[ ! -d "$2" ] || mv "$2" "$gone" || exit
rm -rf .dropped.*
rmdir "$(dirname "$2")" 2>/dev/null
find ../cache -type f -links 1 -ctime +1 -exec rm -f {} +
:
"""

#: Size and name of what no job directory has used for $2 minutes (as find's -cmin says it), which goes if $3 says so.
#: What a job takes from the cache just then it keeps: its link is its own.
TIDY = """
cd "$1/cache" 2>/dev/null || exit 0
find . -type f -links 1 -cmin "$2" | sort | while read -r name; do
  size=$(wc -c <"$name") || continue
  [ "$3" != delete ] || rm -f "$name" || exit
  echo "$((size)) ${name#./}"
done
"""

#: What a job writes and only appends to; what appears whole; what only its name says something of.
#: $2 is the most bytes of one file. Input, for each job directory: ``J directory``, ``O offset name`` for each
#: growing file that is known, ``E``. Output: frames, see ``frames.py``. The result is looked for after the
#: records: whoever wrote a record of its end had published its result before.
PULL = """
root=$1 most=$2
grown() {
  size=$(($(wc -c <"$1"))) || return
  from=$2
  [ "$size" -ge "$from" ] || from=0
  count=$((size - from))
  [ "$count" -le "$most" ] || count=$most
  echo "A $from $count $1"
  [ "$count" -eq 0 ] || tail -c "+$((from + 1))" "$1" | head -c "$count"
}
while read -r kind first name; do
  case $kind in
  J) cd "$root/jobs/$first" 2>/dev/null && here=y || here=n
     echo "J 0 0 $here"; known=/ ;;
  O) [ $here = n ] || [ ! -f "$name" ] || { grown "$name" "$first"; known=$known$name/; } ;;
  E) [ $here = y ] || continue
     for name in progress.jsonl log.txt log.*.txt; do
       case $known in */"$name"/*) ;; *) [ ! -f "$name" ] || grown "$name" 0 ;; esac
     done
     for name in CONTINUE STOP failure.json life.json usage.json doubt.json owner.* started.* end.*.json \
         submitted.*.json hung.*.json; do
       [ -e "$name" ] || continue
       if [ -d "$name" ]; then echo "P 0 0 $name"; continue; fi
       size=$(($(wc -c <"$name")))
       [ "$size" -le 65536 ] || continue
       echo "W 0 $size $name"; head -c "$size" "$name"
     done
     for name in checkpoint/*/state.json checkpoint/*.json; do [ ! -f "$name" ] || echo "P 0 0 $name"; done
     [ ! -d result ] || find result -type f | while read -r name; do
       printf 'R 0 %s %s\\n' "$(($(wc -c <"$name")))" "$name"
     done ;;
  esac
done
echo "Z 0 0 end"
"""

#: Digest and name of every file of the result of job directory $2.
SUMS = """
cd "$1/jobs/$2/result" && find . -type f -exec sha256sum -b {} +
"""

#: File $2 below jobs/ from byte $3 (counted from 1) on.
FETCH = """
cd "$1/jobs" && exec tail -c "+$3" "$2"
"""

#: Frames of the inputs and notes of every attempt that was placed whole and is not among $2 ...
HELD = """
cd "$1/jobs" 2>/dev/null || { echo "Z 0 0 end"; exit 0; }
shift
for place in */*/site.json; do
  [ -f "$place" ] || continue
  place=${place%/site.json}
  for known; do [ "$known" != "$place" ] || continue 2; done
  echo "J 0 0 $place"
  for name in job.json job.sig lives.jsonl life.json site.json; do
    [ -f "$place/$name" ] || continue
    size=$(($(wc -c <"$place/$name")))
    echo "W 0 $size $name"; head -c "$size" "$place/$name"
  done
done
echo "Z 0 0 end"
"""
