"""Words of the docstring task; every one follows a space."""

# fmt: off
ARGUMENTS = (
    "account", "action", "address", "angle", "area", "author", "balance", "batch", "block", "body", "branch", "budget",
    "camera", "canvas", "card", "category", "cell", "channel", "chapter", "city", "client", "code", "color", "column",
    "command", "content", "cost", "counter", "country", "course", "cursor", "data", "date", "delay", "depth", "device",
    "directory", "distance", "document", "domain", "driver", "edge", "email", "engine", "entry", "event", "factor",
    "family", "feature", "field", "figure", "file", "filter", "folder", "font", "frame", "gender", "grid", "group",
    "handle", "header", "height", "history", "host", "icon", "image", "index", "input", "item", "job", "key", "label",
    "language", "layer", "layout", "length", "letter", "level", "limit", "line", "link", "location", "margin", "mask",
    "matrix", "memory", "message", "method", "mode", "model", "module", "month", "name", "network", "node", "note",
    "number", "object", "offset", "option", "order", "output", "owner", "page", "panel", "parent", "password", "path",
    "pattern", "phase", "phone", "picture", "platform", "player", "point", "port", "position", "power", "price",
    "process", "product", "profile", "project", "quality", "query", "radius", "range", "rate", "ratio", "record",
    "region", "report", "request", "result", "role", "root", "rule", "sample", "scale", "schedule", "scope", "score",
    "screen", "section", "sensor", "server", "service", "session", "shape", "signal", "size", "source", "speed",
    "stage", "state", "status", "storage", "stream", "string", "style", "subject", "system", "table", "target", "task",
    "team", "theme", "thread", "ticket", "time", "title", "token", "topic", "track", "tree", "unit", "user", "value",
    "vector", "version", "video", "volume", "weight", "width", "window", "word", "worker", "year", "zone",
)

FUNCTIONS = (
    "add", "apply", "build", "call", "change", "check", "clean", "close", "combine", "compare", "connect", "convert",
    "copy", "count", "create", "cut", "delete", "draw", "enter", "estimate", "expand", "export", "fetch", "fill",
    "find", "fit", "follow", "format", "get", "guess", "hide", "insert", "join", "load", "lock", "make", "mark",
    "match", "measure", "merge", "move", "open", "parse", "pick", "plan", "plot", "print", "publish", "push", "read",
    "receive", "register", "release", "remove", "render", "repeat", "replace", "reset", "run", "save", "search",
    "select", "send", "set", "share", "show", "sort", "split", "start", "stop", "store", "submit", "test", "train",
    "update", "upload", "validate", "visit", "wait", "write",
)

DESCRIPTIONS = (
    "able", "ancient", "autumn", "bitter", "bread", "bright", "broken", "calm", "careful", "cheap", "coffee", "cold",
    "common", "cotton", "curious", "damp", "dark", "deep", "dense", "distant", "double", "dry", "early", "easy",
    "empty", "equal", "extra", "fair", "familiar", "fast", "final", "firm", "flat", "flower", "forest", "free", "fresh",
    "gentle", "golden", "grand", "green", "half", "happy", "harbor", "heavy", "hidden", "honest", "hot", "huge", "iron",
    "island", "juice", "kind", "lake", "large", "late", "lazy", "leather", "light", "little", "local", "loud", "lucky",
    "marble", "metal", "milk", "mixed", "modern", "mountain", "narrow", "neat", "new", "noble", "northern", "ocean",
    "odd", "open", "orange", "outer", "pale", "paper", "plain", "pleasant", "poor", "proud", "public", "pure", "quick",
    "quiet", "rapid", "rare", "raw", "ready", "river", "rough", "round", "royal", "safe", "salt", "sand", "secret",
    "sharp", "short", "silent", "silver", "simple", "single", "slow", "small", "smooth", "soft", "solid", "southern",
    "spare", "spring", "steady", "steel", "stone", "strange", "strong", "summer", "sweet", "tall", "thick", "thin",
    "tiny", "upper", "usual", "valley", "warm", "weak", "wet", "wheat", "white", "whole", "wide", "wild", "winter",
    "wise", "wooden", "yellow", "young",
)
# fmt: on
