package kernel

import (
	"context"

	"github.com/banger-dev/banger/internal/op"
)

// Source fetches the parts of a kernel from where they are published.
type Source interface {
	// Fetch fills dir, which is empty, with vmlinuz (the bzImage), config
	// (the build's .config) and modules/ (the content of
	// /lib/modules/RELEASE, without depmod's files), all checked for
	// origin. It may keep downloads elsewhere to save the next fetch.
	// When it fails, dir's content means nothing.
	Fetch(ctx context.Context, r Recipe, dir string, stage *op.Stage) (Origin, error)
}

// Origin says where a fetched kernel came from.
type Origin struct {
	Release string // uname -r
	Source  string // package and version; no address, which may hold credentials
	// Note is one line worth telling the user, or "".
	Note string
}
