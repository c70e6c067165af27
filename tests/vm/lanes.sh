# The part of tests/run that boots VMs; sourced there with --vm.
#
# `lanes` holds a row for each VM and names what runs there: `tests`, or less. tests/vm/image makes what is booted,
# tests/vm/boot boots it, guest/ is what runs inside.
# shellcheck shell=bash disable=SC2154 # the variables of tests/run

readonly vm_time_limit=${SBX_TEST_VM_TIMEOUT:-1200}
readonly vm_needs=(qemu-system-x86_64:qemu-system-x86 mmdebstrap:mmdebstrap mke2fs:e2fsprogs zstd:zstd xz:xz-utils)

needs+=("${vm_needs[@]}")
# An ordinary user has no mke2fs there.
PATH=$PATH:/usr/sbin:/sbin

# Debian's own qemu-system cannot be installed beside a qemu-utils of backports: then it comes from there too, from the
# mirror that this machine uses already.
qemu_from_backports() {
    local suite list=$run_dir/sources.list apt=(apt-get -q -o "Dir::Etc::SourceList=$run_dir/sources.list")
    suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    cat /etc/apt/sources.list >"$list" 2>/dev/null
    # shellcheck disable=SC2016 # apt's own variable
    apt-get indextargets --format '$(REPO_URI)' "Codename: $suite" | head -n 1 |
        sed "s/.*/deb & $suite-backports main/" >>"$list"
    "${apt[@]}" update >/dev/null && "${apt[@]}" -y install --no-install-recommends -t "$suite-backports" qemu-system-x86 >/dev/null
}

# The rows of a table; of `lanes` those that were chosen.
rows() { grep -v '^#' "tests/vm/$1" | { if [[ $1 == lanes ]]; then grep -E "^($lane_only) "; else cat; fi; }; }

skip_lane() {
    if [[ ,$has, == *,vm,* ]]; then fail "$1: SBX_TEST_HAS declares vm: $2"; return; fi
    skips+=("$1: $2")
    skipped=$((skipped + 1))
}

skip_lanes() {
    local lane
    while read -r lane _; do skip_lane "$lane" "$1"; done < <(rows lanes)
}

# What a lane runs, a line for each: EXECUTABLE ARGUMENT… of the lane's lists of tests, or the one script of `vm_script`.
plan_of() {
    local lists=$1 list name tests words
    if ((${#vm_script[@]})); then echo "${vm_script[*]}"; return; fi
    while read -r name tests; do
        mapfile -t words < <(filter_of "$name")
        echo "$name --test-threads=2 --show-output ${words[*]:-$tests}"
    done < <(for list in ${lists//,/ }; do rows "$list"; done)
}

# Makes the disk of the guests: the directory of this run in small, and a directory for each lane.
make_disk() {
    # `has` is the lane's for `environment`.
    local disk=$run_dir/vm/disk user=$1 lane lists has exe
    mkdir -p "$disk"/{exe,lanes,sbxtest} && cp -al "$run_dir"/{bin,tree} "$disk" || return 1
    tar -C "$run_dir/$user" --owner=1000 --group=1000 -cf "$disk/rootfs.tar" rootfs || return 1
    while read -r lane _ _ _ lists has; do
        mkdir "$disk/lanes/$lane"
        { environment /sbx sbxtest /home/sbxtest; echo SBX_TEST_EXES=/sbx/exe; } >"$disk/lanes/$lane/env"
        plan_of "$lists" >"$disk/lanes/$lane/plan"
        while read -r exe _; do
            if [[ -f tests/$exe ]]; then exe=tests/$exe; else exe=$(compgen -G "$run_dir/exe/$exe-*"); fi
            cp -u "$exe" "$disk/exe/$(basename "${exe%-*}")" || return 1
        done <"$disk/lanes/$lane/plan"
    done < <(rows lanes)
    ((!${#vm_script[@]})) || for exe in "$run_dir"/exe/*; do cp -u "$exe" "$disk/exe/$(basename "${exe%-*}")"; done
    mke2fs -q -F -t ext4 -O '^has_journal' -m 0 -d "$disk" "$run_dir/vm/tests.ext4" 2g >/dev/null
}

# Takes the log of a lane apart and adds it to the totals. An executable that did not come to its end has failed.
count_lane() {
    local lane=$1 log=$run_dir/vm/log part=$run_dir/log line name status left
    local -A ended=()
    while IFS= read -r line; do
        if [[ $line != '### '* ]]; then printf '%s\n' "$line" >>"$part"; continue; fi
        read -r _ name status left <<<"$line"
        if [[ -z $status ]]; then : >"$part"; continue; fi
        ended[$name]=yes
        if ((${#vm_script[@]})); then
            cat "$part"
            ((status == 0)) || fail "$lane/$name"
        else
            count "$lane/$name" "$part" "$status"
        fi
        [[ -z $left ]] || fail "$lane/$name: left behind: $left"
    done <"$log"
    while read -r name _; do
        [[ -n ${ended[$name]-} ]] || fail "$lane/$name: did not end"
    done <"$run_dir/vm/disk/lanes/$lane/plan"
    # Nothing at all: a kernel that panics ends its VM as one that is done.
    ((${#ended[@]})) || tail -n 20 "$run_dir"/vm/{qemu,console,log} >&2
}

run_lane() {
    local image=$1 lane=$2 kernel=$3 status
    say "Lane $lane"
    if [[ ! -e $image/vmlinux-$kernel ]]; then skip_lane "$lane" "apt knows no kernel $kernel"; return; fi
    : >"$run_dir/vm/log"
    tests/vm/boot "$image" "$run_dir/vm" "$vm_time_limit" "${@:2}" >"$run_dir/vm/qemu" 2>&1 &
    child=$!
    wait "$child"
    status=$?
    child=''
    count_lane "$lane"
    ((status == 0)) && return
    fail "$lane: ended with status $status after at most $vm_time_limit s"
    tail -n 20 "$run_dir"/vm/{qemu,console,log} >&2
}

lanes() {
    local user=$1 need image kernels lane
    [[ $(uname -m) == x86_64 ]] || { skip_lanes "needs an x86_64 machine"; return; }
    command -v qemu-system-x86_64 >/dev/null || ! is_root || qemu_from_backports
    for need in "${vm_needs[@]}"; do
        command -v "${need%%:*}" >/dev/null || { skip_lanes "${need%%:*} is not installed"; return; }
    done
    [[ -n $(rows lanes) ]] || { fail "no lane is named $lane_only"; return; }
    # Of all lanes, for there is one image.
    mapfile -t kernels < <(lane_only='.*' rows lanes | awk '{ print $2 }' | sort -u)
    say "The image of the VMs"
    if ! image=$(tests/vm/image "${kernels[@]}"); then skip_lanes "the image cannot be made"; return; fi
    if ! make_disk "$user"; then fail "the disk of the VMs"; return; fi
    while read -r -a lane; do run_lane "$image" "${lane[@]}" </dev/null; done < <(rows lanes)
}
