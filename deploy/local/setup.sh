# shellcheck shell=sh
# What `up` and `tests/run` need before they can start: Debian packages and a virtual environment. Sourced by both.
#
# The caller sets `root` (the checkout), `program` (its own name, for its lines) and `setup_log` (an existing folder's
# file that takes the output of apt-get and pip), and may use `python` after prepare_environment.

: "${root:?}" "${program:?}"

fail() {
    printf '%s: %s\n' "$program" "$1" >&2
    exit "${2:-1}"
}

say() {
    printf '%s: %s\n' "$program" "$1"
}

# Runs a command whose output matters only when it fails.
logged() {
    printf '\n# %s\n' "$*" >>"${setup_log:?}"
    "$@" >>"$setup_log" 2>&1 && return
    tail -n 15 "$setup_log" >&2
    return 1
}

has_python() {
    # Debian's python3 alone cannot make a virtual environment: ensurepip comes with python3-venv.
    python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Prints PACKAGE for each PACKAGE:FILE whose file is not there, so that what came from elsewhere serves as well.
missing_packages() {
    has_python || printf ' python3 python3-venv'
    for pair; do
        [ -e "${pair#*:}" ] || printf ' %s' "${pair%%:*}"
    done
}

install_missing() {
    missing=$(missing_packages "$@")
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || fail "this is no Debian; please install what serves as its$missing"
    say "installing$missing (output: $setup_log)"
    # shellcheck disable=SC2086 # a list of words
    case $(id -u) in
    0) logged "$root/deploy/local/install-packages" $missing || fail "apt-get could not install$missing" ;;
    *) install_with_sudo $missing ;;
    esac
    has_python || fail "Python 3.11 or newer is needed, and python3 is $(python3 --version 2>&1)"
}

install_with_sudo() {
    command -v sudo >/dev/null || fail "root or sudo is needed to install $*"
    logged sudo "$root/deploy/local/install-packages" "$@" || fail "sudo and apt-get could not install $*"
}

# Makes the virtual environment of a lock file, unless it is there, and sets `python` to its interpreter. Its folder is
# named after what it is made of, so it never changes once it exists, and every copy of the checkout's programs shares it.
prepare_environment() {
    lock_file=$root/$1
    environments=$2
    mkdir -p "$environments"
    key=$({ python3 --version && cat "$lock_file"; } | sha256sum | cut -c 1-16)
    python=$environments/$key/bin/python
    # One at a time: whoever comes second finds the environment made.
    exec 8>"$environments/lock"
    flock -w 900 8 || fail "somebody else has been making $environments/$key for 15 minutes"
    [ -x "$python" ] || make_environment "$environments/$key"
    exec 8>&-
}

# A folder with that name is always a whole environment, because a half one has another name.
make_environment() {
    say "making a virtual environment from ${lock_file##*/} (output: $setup_log)"
    rm -rf "$1.part"
    logged python3 -m venv "$1.part" || fail "python3 -m venv failed"
    logged "$1.part/bin/python" -m pip install --require-hashes --no-input --disable-pip-version-check \
        -r "$lock_file" || fail "pip could not install ${lock_file##*/}"
    mv "$1.part" "$1"
}

# Where environments are kept: beside the code, or below the given folder if the code belongs to somebody else.
environments_folder() {
    if [ -w "$root" ]; then
        printf '%s/.venv' "$root"
    else
        printf '%s/venv' "$1"
    fi
}
