package image

import (
	"context"

	"github.com/banger-dev/banger/internal/op"
)

// Entry is an image that a source can make.
type Entry struct {
	Name    string
	Summary string
	OS      string
	Kernel  string
	Source  string // "recipe:debian-bookworm"
	Need    int64  // bytes of free space that making it takes in the store
}

// Source makes images of one kind.
type Source interface {
	// Entries lists what it can make.
	Entries() ([]Entry, error)
	// Make writes the root filesystem of the named entry to dst, which does
	// not exist, and describes it; work is an empty directory for what is
	// needed meanwhile, removed by the caller. When it fails, or ctx ends,
	// nothing it started is left running.
	Make(ctx context.Context, name, dst, work string, r op.Reporter) (Manifest, error)
}
