# shellcheck shell=bash
# Parts of all scripts: paths, messages, the lock, and Debian packages unpacked without being installed.
# Usage: . "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=$root/target
work= # see work_folder

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "error: $*"; exit 1; }

# die_of LOG MESSAGE: the end of a failed command's log, then the message.
die_of() { tail -n 20 "$1" >&2; die "$2"; }

# Run as root, through sudo where needed.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- "$@"
    else
        die "'$*' must run as root: run it yourself, or install sudo, and start again"
    fi
}

# The one lock for everything that changes target/ (held until the script ends).
lock() {
    mkdir -p "$target"
    exec 9>"$target/.scripts-lock"
    if ! flock -n 9; then
        say "waiting for another run of the scripts in this checkout"
        flock 9
    fi
}

# A fresh folder for a build in the making, gone when the script ends: sets $work. Only with the lock held.
work_folder() {
    rm -rf "$target"/.work-*
    work=$(mktemp -d "$target/.work-XXXXXX")
    chmod 755 "$work"
    trap 'rm -rf "$work"' EXIT
}

# --- Debian packages, unpacked ---------------------------------------------------------------------------------------
# apt runs with its own state and no package installed, so it resolves every dependency down to libc, verifies Debian's
# signatures, and neither needs root nor touches the system.

# The mirror this machine's own apt uses for Debian's main archive, or $QFERRY_DEBIAN_MIRROR.
# (--no-release-info: also where no package lists have been fetched yet.)
debian_mirror() {
    if [ -n "${QFERRY_DEBIAN_MIRROR:-}" ]; then
        echo "$QFERRY_DEBIAN_MIRROR"
        return
    fi
    local site release suites='^(bookworm|trixie|forky|sid|oldoldstable|oldstable|stable|testing|unstable)$'
    # shellcheck disable=SC2016 # apt-get's own variables
    while read -r site release; do
        if [[ $release =~ $suites && $site != *security* ]]; then
            echo "$site"
            return
        fi
    done < <(apt-get indextargets --no-release-info --format '$(SITE) $(RELEASE)' \
        'Created-By: Packages' 'Component: main')
    die "apt on this machine knows no Debian archive: set QFERRY_DEBIAN_MIRROR to the URL of a Debian mirror"
}

# private_apt FOLDER SOURCE_LINE: writes FOLDER/apt.conf for an apt that lives in FOLDER alone.
private_apt() {
    local at=$1
    mkdir -p "$at/state/lists/partial" "$at/cache/archives/partial" "$at/keys"
    : >"$at/status"
    printf '%s\n' "$2" >"$at/sources.list"
    cat >"$at/apt.conf" <<END
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
Dir::State "$at/state/";
Dir::State::status "$at/status";
Dir::Cache "$at/cache/";
Dir::Cache::archives "archives/";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Etc::sourcelist "$at/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::trusted "/dev/null";
Dir::Etc::trustedparts "$at/keys/";
Dir::Log "$at/";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Default-Release "";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Get::Assume-Yes "true";
APT::Keep-Downloaded-Packages "true";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Acquire::Retries "3";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
END
}

# Debian's archive keys into FOLDER/keys: the installed ones, and where they are older than the suite, those of the
# newest debian-archive-keyring that this machine's own (trusted) package sources offer.
archive_keys() {
    local at=$1 keyring=/usr/share/keyrings/debian-archive-keyring
    rm -f "$at"/keys/*
    if [ "${2:-}" != newest ]; then
        cp -L "$keyring.gpg" "$at/keys/debian.gpg" 2>/dev/null
        return
    fi
    (
        mkdir -p "$at/keyring" && cd "$at/keyring" && rm -rf ./*
        apt-get -qq -o APT::Sandbox::User=root download debian-archive-keyring 2>/dev/null || {
            as_root apt-get -qq update
            apt-get -qq -o APT::Sandbox::User=root download debian-archive-keyring
        }
        dpkg-deb -x ./*.deb .
        cp -L ".$keyring.gpg" "$at/keys/debian.gpg"
    )
}

private_update() {
    apt-get -c "$1/apt.conf" -qq -o APT::Update::Error-Mode=any update >"$1/log" 2>&1
}

# debian_unpack [--only REGEX] SUITE FOLDER PACKAGE...: unpacks the packages and all they depend on into FOLDER, or of
# these only the ones whose names match. FOLDER.packages tells names and versions. SUITE is a release or its -backports.
debian_unpack() {
    local only=. suite into at mirror source deb package packages=()
    if [ "$1" = --only ]; then
        only=$2
        shift 2
    fi
    suite=$1 into=$2 at=$target/apt/$1
    shift 2
    [ "$(dpkg --print-architecture)" = amd64 ] || die "this needs Debian on amd64, not $(dpkg --print-architecture)"
    mirror=$(debian_mirror)
    source="deb $mirror ${suite%-backports} main"
    if [[ $suite == *-backports ]]; then
        source+=$'\n'"deb $mirror $suite main"
    fi
    private_apt "$at" "$source"
    archive_keys "$at"
    if ! private_update "$at"; then
        grep -qi 'NO_PUBKEY\|missing key\|not signed\|no keyring' "$at/log" || die_of "$at/log" \
            "could not read $suite from this machine's Debian mirror: is the network up, and does the mirror carry $suite?"
        say "Debian's keys on this machine are older than $suite: trying the newest debian-archive-keyring"
        archive_keys "$at" newest
        private_update "$at" || die_of "$at/log" \
            "the signature of $suite cannot be verified: run 'apt-get install debian-archive-keyring' and start again"
    fi
    apt-get -c "$at/apt.conf" -t "$suite" --simulate install "$@" >"$at/log" 2>&1 ||
        die_of "$at/log" "could not resolve $* in $suite"
    while read -r deb package source _; do
        if [ "$deb" = Inst ] && [[ $package =~ $only ]]; then
            packages+=("$package=${source#(}")
        fi
    done <"$at/log"
    mkdir -p "$into" "$into.debs"
    (cd "$into.debs" && apt-get -c "$at/apt.conf" -qq download "${packages[@]}") >"$at/log" 2>&1 ||
        die_of "$at/log" "could not download $* from $suite"
    for deb in "$into.debs"/*.deb; do
        dpkg-deb -x "$deb" "$into"
    done
    printf '%s\n' "${packages[@]//=/ }" >"$into.packages"
    rm -rf "$into.debs"
}

# --- Compilers -------------------------------------------------------------------------------------------------------

# need_cc: installs the packages that cannot sensibly be unpacked: a C compiler with a static libc, CA certificates, git, and
# ip and tc for the links of the tests.
need_cc() {
    local missing=()
    command -v cc >/dev/null || missing+=(gcc)
    [ -e /usr/lib/x86_64-linux-gnu/libc.a ] || missing+=(libc6-dev)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
    command -v git >/dev/null || missing+=(git)
    [ -x /sbin/tc ] || [ -x /usr/sbin/tc ] || missing+=(iproute2)
    if [ ${#missing[@]} = 0 ]; then
        return
    fi
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null ||
        die "missing: ${missing[*]}; as root, run 'apt-get install --no-install-recommends ${missing[*]}' and start again"
    say "installing into the system: ${missing[*]}"
    as_root apt-get -qq update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "${missing[@]}" >/dev/null ||
        die "could not install ${missing[*]}: install them by hand and start again"
}

# The oldest Rust that must build the project: Cargo.toml's rust-version.
rust_version() { sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' "$root/Cargo.toml" | sed -n 1p; }

# Of the rustc on PATH: 1.85 for 1.85.1; nothing if there is none.
rust_here() { { rustc --version 2>/dev/null || true; } | sed -n 's/^rustc \([0-9]*\.[0-9]*\).*/\1/p'; }

# need_rust: puts a Rust that builds the project on PATH: the caller's if it is new enough and complete, or rustup's,
# or else Debian 13's, unpacked into target/toolchain by scripts/rust.
need_rust() {
    local here
    if ! command -v cargo >/dev/null && [ -x "${HOME:-/}/.cargo/bin/cargo" ]; then
        PATH=$HOME/.cargo/bin:$PATH
    fi
    here=$(rust_here)
    if [ -n "$here" ] && [ "$(printf '%s\n' "$(rust_version)" "$here" | sort -V | sed -n 1p)" = "$(rust_version)" ] &&
        cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1; then
        return
    fi
    need_unpacked_rust
}

# need_unpacked_rust: puts Debian 13's Rust on PATH whatever else is there.
need_unpacked_rust() {
    "$root/scripts/rust"
    PATH=$target/toolchain/bin:$PATH
    unset RUSTC RUSTDOC RUSTFMT
}
