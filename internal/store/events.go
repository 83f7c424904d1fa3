package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"github.com/banger-dev/banger/internal/event"
)

var _ event.Store = (*Store)(nil)

// maxEvents is how many events are kept unless KeepEvents says otherwise; the
// oldest go first.
const maxEvents = 20000

const pruneEvery = 512

// KeepEvents sets how many events are kept. Call it before the store is used.
func (s *Store) KeepEvents(n int) {
	if n > 0 {
		s.keep = n
	}
}

// AppendEvent stores an event and gives its cursor.
func (s *Store) AppendEvent(ctx context.Context, e event.Event) (uint64, error) {
	data, err := json.Marshal(e.Data)
	if err != nil {
		return 0, err
	}
	res, err := s.db.ExecContext(ctx, "INSERT INTO events (at, kind, vm, name, message, data) VALUES (?, ?, ?, ?, ?, ?)",
		e.At.UnixNano(), e.Kind, e.VM, e.Name, e.Message, string(data))
	if err != nil {
		return 0, s.explain(err)
	}
	id, err := res.LastInsertId()
	if err != nil {
		return 0, err
	}
	if id%pruneEvery == 0 {
		if _, err := s.db.ExecContext(ctx, "DELETE FROM events WHERE cursor <= ?", id-int64(s.keep)); err != nil {
			return 0, s.explain(err)
		}
	}
	return uint64(id), nil
}

// EventsAfter gives up to limit events above the cursor, in order.
func (s *Store) EventsAfter(ctx context.Context, after uint64, limit int) ([]event.Event, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT cursor, at, kind, vm, name, message, data FROM events WHERE cursor > ? ORDER BY cursor LIMIT ?", int64(min(after, 1<<62)), limit)
	if err != nil {
		return nil, s.explain(err)
	}
	defer rows.Close()
	var out []event.Event
	for rows.Next() {
		var e event.Event
		var at int64
		var data string
		if err := rows.Scan(&e.Cursor, &at, &e.Kind, &e.VM, &e.Name, &e.Message, &data); err != nil {
			return nil, s.explain(err)
		}
		e.At = time.Unix(0, at)
		if err := json.Unmarshal([]byte(data), &e.Data); err != nil {
			return nil, damaged(s.path, err)
		}
		out = append(out, e)
	}
	return out, s.explain(rows.Err())
}

// LastEvent is the highest cursor ever given.
func (s *Store) LastEvent(ctx context.Context) (uint64, error) {
	var n int64
	err := s.db.QueryRowContext(ctx, "SELECT seq FROM sqlite_sequence WHERE name = 'events'").Scan(&n)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return uint64(n), s.explain(err)
}
