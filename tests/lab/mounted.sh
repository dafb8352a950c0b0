# A pair of Tandem nodes on this machine, for the scenarios with a mounted filesystem.  Sourced after lib.sh.
# shellcheck shell=bash

# The binary under test.
TANDEM=${TANDEM_BIN:-$LAB_SRC/../../${CARGO_TARGET_DIR:-target}/debug/tandem}
case ${CARGO_TARGET_DIR:-} in /*) TANDEM=${TANDEM_BIN:-$CARGO_TARGET_DIR/debug/tandem} ;; esac
# How long a state may take, in seconds, on a loaded machine.
STATE_LIMIT=120

declare -A NODE_PID=() NODE_NBD=()

say() { printf '%s %s\n' "$(date +%T)" "$*"; }

other() { if [ "$1" = alpha ]; then echo bravo; else echo alpha; fi; }

# adm NODE WORD... : tandem adm of this node
adm() { local n=$1; shift; "$TANDEM" adm --root "$LAB_DIR/$n" "$@"; }

# What a failure should show.
pair_logs() {
    local n
    for n in alpha bravo; do
        echo "--- $n"; tail -30 "$LAB_DIR/$n/daemon.log" || true
        timeout 10 "$TANDEM" status --root "$LAB_DIR/$n" || true
    done >&2 2>&1
}

# until_true SECONDS WHAT COMMAND... : wait until the command succeeds
until_true() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ $SECONDS -lt "$end" ] || { pair_logs; die "waited in vain: $what"; }
        sleep 0.1
    done
}

# pair_make DISK_BYTES : two configured nodes with blank disks below LAB_DIR, each with a TCP port for NBD
pair_make() {
    local n a b
    [ -x "$TANDEM" ] || die "no binary $TANDEM; next: cargo build -p tandem-cli"
    a=$(free_port) b=$(free_port)
    for n in alpha bravo; do
        mkdir -p "$LAB_DIR/$n/etc"
        truncate -s "$1" "$LAB_DIR/$n/disk.img"
        echo $n >"$LAB_DIR/$n/etc/hostname"
        NODE_NBD[$n]=$(free_port)
        cat >"$LAB_DIR/$n/etc/drbd.conf" <<C
global { usage-count no; }
resource r0 {
  net { protocol C; ping-timeout 20; connect-int 2; timeout 10; }
  disk { c-plan-ahead 0; resync-rate 400M; }
  device /dev/drbd0; disk $LAB_DIR/$n/disk.img; meta-disk internal;
  on alpha { address 127.0.0.1:$a; }
  on bravo { address 127.0.0.1:$b; }
}
C
        adm $n create-md r0 >/dev/null 2>&1 || die "create-md fails on $n"
    done
}

# node_start NODE : the daemon, and what its administrator types after a boot
node_start() {
    local dir=$LAB_DIR/$1
    rm -f "$dir/run/tandem/control.sock"
    "$TANDEM" daemon --root "$dir" --nbd-tcp "127.0.0.1:${NODE_NBD[$1]}" --log-file "$dir/daemon.log" >>"$dir/daemon.out" 2>&1 &
    NODE_PID[$1]=$!
    LAB_PIDS+=($!)
    until_true 60 "the daemon of $1" test -S "$dir/run/tandem/control.sock"
    adm "$1" up r0 2>>"$dir/daemon.out" || die "up fails on $1"
}

# node_kill NODE : SIGKILL, as if the machine were gone
node_kill() {
    kill -KILL "${NODE_PID[$1]}"
    wait "${NODE_PID[$1]}" 2>/dev/null || true
}

word_is() { [ "$(adm "$1" "$2" r0 2>/dev/null)" = "$3" ]; }

until_word() { until_true $STATE_LIMIT "$2 $3 on $1" word_is "$1" "$2" "$3"; }

until_good() {
    local n
    for n in alpha bravo; do until_word $n cstate Connected; until_word $n dstate UpToDate/UpToDate; done
}

# pair_start : both nodes up and equal without a first sync (the disks are blank), alpha Primary
pair_start() {
    node_start alpha; node_start bravo
    until_word alpha dstate Inconsistent/Inconsistent
    adm alpha new-current-uuid --clear-bitmap r0
    until_good
    adm alpha primary r0
}

# pair_compare BYTES : ends both nodes in order; their devices, of this size, are equal byte by byte
pair_compare() {
    local n
    for n in alpha bravo; do adm $n down r0 || die "down fails on $n"; done
    cmp -n "$1" "$LAB_DIR/alpha/disk.img" "$LAB_DIR/bravo/disk.img" || die "the disks differ"
}

# In the machine n: files in /mnt, each noted when it is synced, until an error comes or /tmp/stop is there; says which.
# shellcheck disable=SC2034,SC2016
GUEST_WRITER='rm -f /tmp/stop; mkdir -p /mnt/files; sync -f /mnt; i=$(wc -l </tmp/told)
    while [ ! -e /tmp/stop ]; do i=$((i + 1))
        head -c $((1 + i * 977 % 100000)) /dev/urandom >/tmp/next; sum=$(sha256sum </tmp/next)
        dd if=/tmp/next of=/mnt/files/$i bs=16k conv=fsync 2>/dev/null || { echo error; exit 0; }
        echo "${sum%-}files/$i" >>/tmp/told; done; echo stopped'
guest_told() { on n 'wc -l </tmp/told'; }
guest_told_more_than() { [ "$(guest_told)" -gt "$1" ]; }
guest_files_judge() {
    T=200 on n 'cd /mnt && sha256sum -c /tmp/told >/tmp/judged 2>&1 || { grep -v ": OK" /tmp/judged >&2; exit 1; }' || die "files differ"
}

# row SCENARIO RESULT : a row of the table "Mounted", for scripts/mounted
row() { [ -z "${TANDEM_ROWS:-}" ] || printf '| %s | %s | %s | ok |\n' "$1" "$2" "$SECONDS" >>"$TANDEM_ROWS"; }
