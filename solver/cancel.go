package solver

// cancel tells the scheduler that nobody waits for a request of a build any
// more, when it is not looking at an edge. An edge asks its requests more than
// once if they have been canceled; when it finds one canceled that was not a
// moment before, it gives it up, but keeps working for it. The scheduler takes
// that for an error, which stays with the edge and fails whoever evaluates it
// next. Everything else that cancels requests is called by the scheduler.
func (s *scheduler) cancel(r pipeReceiver) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Cancel()
}
