#!/usr/bin/env bash
# Opens a page of `bench report` or `faultline report --html` in headless Chromium: its script must run to the end without a message on the console. Keeps a
# picture in light and one in dark.
set -euo pipefail

if (($# != 2)); then
    echo "Usage: scripts/check-page.sh PAGE.html FOLDER_FOR_PICTURES" >&2
    exit 2
fi
page=$(realpath "$1") pictures=$2
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || {
    echo "no Chromium: apt-get install chromium" >&2
    exit 2
}
mkdir -p "$pictures"
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
quiet=(--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --user-data-dir="$profile")

"$chromium" "${quiet[@]}" --enable-logging=stderr --dump-dom "file://$page" >"$profile/dom" 2>"$profile/log"
if grep CONSOLE "$profile/log"; then
    echo "$page: messages on the console" >&2
    exit 1
fi
grep -q 'data-ready="true"' "$profile/dom" || { echo "$page: its script did not run to the end" >&2; exit 1; }

# Blink's setting: 1 prefers light, 0 dark.
for scheme in light:1 dark:0; do
    "$chromium" "${quiet[@]}" --blink-settings=preferredColorScheme="${scheme#*:}" --hide-scrollbars --force-device-scale-factor="${PAGE_SCALE:-1}" \
        --window-size=1200,"${PAGE_HEIGHT:-6000}" --screenshot="$pictures/${scheme%:*}.png" "file://$page" 2>/dev/null
done
echo "$page: no message; pictures in $pictures"
