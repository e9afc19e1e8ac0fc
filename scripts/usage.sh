# Sourced by the other scripts: `needs "MODEL DATA OUT" "$@"` leaves with 2, wrong usage, when a word is missing or empty.

# wrong MESSAGE
wrong() {
  echo "error: $1" >&2
  exit 2
}

needs() {
  local names place
  read -ra names <<<"$1"
  shift
  for place in "${!names[@]}"; do
    [ $# -gt "$place" ] && [ -n "${@:place+1:1}" ] || wrong "${0##*/}: ${names[place]} is missing; it takes ${names[*]}"
  done
}

# counts NAME VALUE: a number from 1
counts() {
  [[ "$2" =~ ^[1-9][0-9]*$ ]] || wrong "$1=$2: a number from 1"
}
