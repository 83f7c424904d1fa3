package daemon

import (
	"context"

	"github.com/banger-dev/banger/internal/apiserver"
)

// Doctor gathers what is to be said of this host.
func (d *Daemon) Doctor(ctx context.Context) ([]apiserver.Check, error) {
	_ = ctx
	return nil, nil
}
